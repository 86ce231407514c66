// The processor cores of this process, and how many of them its calls may keep busy.
#pragma once

#include <sched.h>

#include <string>
#include <string_view>

namespace tessera::core {

/// The cores that this process may use at this moment: the affinity of its main thread, together
/// with the calling thread's. The main thread's, because threads that a program pins to a core say
/// nothing about its other threads; the calling thread's, because a program may confine its main
/// thread to one core and leave the others to the threads that work. Empty if the kernel does not
/// tell.
cpu_set_t process_cores();

/// How many threads the process can keep busy at this moment, at least 1: its cores, but no more
/// than the CPU quota of its control groups. The quota is read once.
int num_usable_cores();

/// The processors that the system has, whether or not this process may use them: no later
/// num_usable_cores() is larger. Never changes.
int num_configured_cores();

/// The CPU quota in cores, rounded up, of a process whose /proc/self/cgroup reads
/// `proc_self_cgroup`: the smallest of its control groups and their ancestors, in version 1 and 2
/// of control groups mounted below `root`, usually /sys/fs/cgroup. INT_MAX if there is none.
int cpu_quota(const std::string& root, std::string_view proc_self_cgroup);

}  // namespace tessera::core
