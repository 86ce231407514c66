#include "check_program.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tessera/info.hpp"
#include "tessera/ops.hpp"

namespace tessera::test {
namespace {

constexpr int kExitSkipped = 77;
constexpr const char* kUsage =
    "options: [--random COUNT] [--seed FIRST] [--max-ids N] [--exact] [--pairwise]\n"
    "         [--op NAME | --except NAME ...] [--share I/N]\n"
    "  --random COUNT  also check COUNT random cases (default 1000)\n"
    "  --seed FIRST    seed of the first random case (default 1)\n"
    "  --max-ids N     leave out larger cases, and draw none with more ids or slots\n"
    "                  (default 20000)\n"
    "  --exact         one call per case and implementation, on allocations of exactly the\n"
    "                  size: for compute-sanitizer\n"
    "  --pairwise      also check fused_experts on its table with the sizes of models\n"
    "  --op NAME       check this op alone\n"
    "  --except NAME   do not check this op; may be given for several\n"
    "  --share I/N     check one case in N alone, from case I on: N programs with I = 1 ... N "
    "check\n"
    "                  all, side by side\n";

CheckOptions parse(int argc, char** argv) {
  CheckOptions options;
  for (int i = 1; i < argc; ++i) {
    const auto value = [&]() -> long {
      char* end = nullptr;
      const long parsed = i + 1 < argc ? std::strtol(argv[++i], &end, 10) : -1;
      if (end == nullptr || *end != '\0' || parsed < 0) {
        std::fputs(kUsage, stderr);
        std::exit(2);
      }
      return parsed;
    };
    if (std::strcmp(argv[i], "--random") == 0) {
      options.random = value();
    } else if (std::strcmp(argv[i], "--seed") == 0) {
      options.seed = static_cast<unsigned long>(value());
    } else if (std::strcmp(argv[i], "--max-ids") == 0) {
      options.max_ids = value();
    } else if (std::strcmp(argv[i], "--op") == 0 && i + 1 < argc &&
               find_op(argv[i + 1]) != nullptr) {
      options.op = argv[++i];
    } else if (std::strcmp(argv[i], "--except") == 0 && i + 1 < argc &&
               find_op(argv[i + 1]) != nullptr) {
      options.left_out.emplace_back(argv[++i]);
    } else if (std::strcmp(argv[i], "--share") == 0 && i + 1 < argc &&
               std::sscanf(argv[i + 1], "%ld/%ld", &options.share, &options.num_shares) == 2 &&
               1 <= options.share && options.share <= options.num_shares) {
      ++i;
    } else if (std::strcmp(argv[i], "--pairwise") == 0) {
      options.pairwise = true;
    } else if (std::strcmp(argv[i], "--exact") == 0) {
      options.exact = true;
    } else {
      std::fputs(kUsage, std::strcmp(argv[i], "--help") == 0 ? stdout : stderr);
      std::exit(std::strcmp(argv[i], "--help") == 0 ? 0 : 2);
    }
  }
  return options;
}

}  // namespace

CheckOptions begin_check(int argc, char** argv) {
  const CheckOptions options = parse(argc, argv);
  for (const BackendInfo& backend : backends()) {
    if (backend.name != "cuda") continue;
    std::printf("cuda: %s\n", backend.detail.c_str());
    if (!backend.available) {
      std::puts("skipped: nothing to check the CUDA backend on");
      std::exit(kExitSkipped);
    }
  }
  return options;
}

long max_ids_of_random_case(const CheckOptions& options, long k) {
  return k % 8 == 0 ? options.max_ids : std::min(options.max_ids, 1024L);
}

}  // namespace tessera::test
