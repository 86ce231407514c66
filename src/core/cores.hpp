// The processor cores of this process, and how many of them its calls may use.
#pragma once

#include <sched.h>

#include <string>
#include <string_view>

namespace tessera::core {

/// The cores that this process may use at this moment: the union of the affinities of its main
/// thread and of the calling thread. The main thread counts because a thread that a program pins to
/// a core says nothing about other threads; the calling thread counts because a program may confine
/// its main thread to one core and leave the others to worker threads. Empty if the affinity cannot
/// be read.
cpu_set_t process_cores();

/// The number of threads that the process can keep busy at this moment, at least 1: its cores, but
/// no more than the CPU quota of its control groups. The quota is read once.
int num_usable_cores();

/// The number of processors of the system, whether or not this process may use them: an upper bound
/// of num_usable_cores() at any time. Never changes.
int num_configured_cores();

/// The CPU quota in cores, rounded up, of a process whose /proc/self/cgroup contains
/// `proc_self_cgroup`: the smallest quota of its control groups and their ancestors, for versions 1
/// and 2 of control groups mounted below `root`, usually /sys/fs/cgroup. INT_MAX if there is none.
int cpu_quota(const std::string& root, std::string_view proc_self_cgroup);

}  // namespace tessera::core
