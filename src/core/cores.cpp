#include "core/cores.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <climits>
#include <cstdint>
#include <optional>

#include "core/uncancellable.hpp"

namespace tessera::core {
namespace {

constexpr int kNoQuota = INT_MAX;

/// The contents of a file, empty if it cannot be read.
std::string read_file(const std::string& path) {
  const Uncancellable guard;
  std::string text;
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return text;
  char part[1024];
  for (ssize_t size = 0; (size = read(file, part, sizeof(part))) > 0;) text.append(part, size);
  close(file);
  return text;
}

/// Removes from `text` and returns everything before `end`, or all of it.
std::string_view take_until(char end, std::string_view* text) {
  const std::size_t length = std::min(text->find(end), text->size());
  const std::string_view front = text->substr(0, length);
  text->remove_prefix(std::min(length + 1, text->size()));
  return front;
}

std::optional<std::int64_t> integer(std::string_view text) {
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  std::int64_t value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size()) return std::nullopt;
  return value;
}

/// Converts microseconds of CPU time per period to cores. "max" and -1 mean no quota.
int quota_of(std::string_view quota_text, std::string_view period_text) {
  const std::optional<std::int64_t> quota = integer(quota_text);
  const std::optional<std::int64_t> period = integer(period_text);
  if (!quota || !period || *quota < 0 || *period < 1) return kNoQuota;
  const std::int64_t cores = *quota == 0 ? 1 : (*quota - 1) / *period + 1;
  return static_cast<int>(std::min<std::int64_t>(cores, kNoQuota));
}

int group_quota(const std::string& folder) {
  const std::string version_2 = read_file(folder + "/cpu.max");
  std::string_view rest = version_2;
  const std::string_view quota = take_until(' ', &rest);
  return std::min(quota_of(quota, rest), quota_of(read_file(folder + "/cpu.cfs_quota_us"),
                                                  read_file(folder + "/cpu.cfs_period_us")));
}

/// The smallest quota of the group `path` of the hierarchy at `mount` and of its ancestors. In a
/// container `path` may be a path of the host, of which only the last ancestor, the mount itself,
/// is visible.
int smallest_quota(const std::string& mount, std::string_view path) {
  int smallest = kNoQuota;
  if (path.find("/..") != std::string_view::npos) path = {};  // a group outside the mount
  for (;;) {
    while (!path.empty() && path.back() == '/') path.remove_suffix(1);
    smallest = std::min(smallest, group_quota(std::string(mount).append(path)));
    if (path.empty()) return smallest;
    path = path.substr(0, path.rfind('/') + 1);
  }
}

cpu_set_t affinity_of(pid_t thread) {
  cpu_set_t cores;
  if (sched_getaffinity(thread, sizeof(cores), &cores) != 0) CPU_ZERO(&cores);
  return cores;
}

/// The number above 0 that the first call of `find` returns. Like core::once, it takes no lock,
/// which a fork could leave held in the child; unlike core::once, it allocates nothing, since
/// memory may have run out.
template <typename Find>
int found_once(std::atomic<int>* kept, Find find) {
  int number = kept->load(std::memory_order_relaxed);
  if (number == 0) {
    number = find();
    kept->store(number, std::memory_order_relaxed);
  }
  return number;
}

int processors_of_system() {
  static std::atomic<int> kept;
  return found_once(&kept, [] { return static_cast<int>(sysconf(_SC_NPROCESSORS_CONF)); });
}

bool names_cpu(std::string_view controllers) {
  while (!controllers.empty()) {
    if (take_until(',', &controllers) == "cpu") return true;
  }
  return false;
}

}  // namespace

int cpu_quota(const std::string& root, std::string_view proc_self_cgroup) {
  int smallest = kNoQuota;
  while (!proc_self_cgroup.empty()) {
    // "hierarchy:controllers:path"; version 2 names no controllers.
    std::string_view path = take_until('\n', &proc_self_cgroup);
    take_until(':', &path);
    const std::string_view controllers = take_until(':', &path);
    if (controllers.empty()) {
      // The second path is the mount of version 2 beside version 1.
      smallest =
          std::min({smallest, smallest_quota(root, path), smallest_quota(root + "/unified", path)});
    } else if (names_cpu(controllers)) {
      smallest =
          std::min({smallest, smallest_quota(root + "/cpu", path),
                    smallest_quota(std::string(root).append("/").append(controllers), path)});
    }
  }
  return smallest;
}

cpu_set_t process_cores() {
  cpu_set_t cores = affinity_of(0);
  // Most processes may use all cores: one system call suffices for them.
  if (CPU_COUNT(&cores) < processors_of_system()) {
    const cpu_set_t main_threads = affinity_of(getpid());
    CPU_OR(&cores, &cores, &main_threads);
  }
  return cores;
}

int num_usable_cores() {
  static std::atomic<int> kept;
  const int quota =
      found_once(&kept, [] { return cpu_quota("/sys/fs/cgroup", read_file("/proc/self/cgroup")); });
  const cpu_set_t cores = process_cores();
  return std::max(1, std::min(CPU_COUNT(&cores), quota));
}

int num_configured_cores() {
  // If /sys is not mounted, the C library may report fewer than there are.
  static std::atomic<int> kept;
  return found_once(&kept, [] {
    const cpu_set_t usable = process_cores();
    return std::max({1, processors_of_system(), CPU_COUNT(&usable)});
  });
}

}  // namespace tessera::core
