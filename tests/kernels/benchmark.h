// All-reduce beside raw MPI_Allreduce, in alternating rounds.

#ifndef WHALE_TESTS_KERNELS_BENCHMARK_H_
#define WHALE_TESTS_KERNELS_BENCHMARK_H_

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "kernels/communicator/mpi_library.h"
#include "tests/kernels/checks.h"

namespace whale {

inline double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double ProcessorSeconds(int whose = RUSAGE_SELF) {
  rusage usage{};
  getrusage(whose, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The sizes of the gradients of a 4-layer transformer of width 256 with a vocabulary of 4,096: 68 tensors, 21 MB.
inline std::vector<int64_t> GradientCounts() {
  std::vector<int64_t> counts = {4096 * 256, 128 * 256, 256, 256};
  for (int layer = 0; layer < 4; ++layer) {
    for (int i = 0; i < 4; ++i) counts.insert(counts.end(), {256 * 256, 256});
    counts.insert(counts.end(), {256, 256, 256 * 1024, 1024, 1024 * 256, 256, 256, 256});
  }
  counts.resize(68, 256);
  counts[67] = 4096 * 256;
  return counts;
}

class AllReduceRace {
 public:
  AllReduceRace(const std::string& path, Communicator* communicator) : communicator_(communicator) {
    CheckOk(mpi::Load(path, &mpi_));
    for (int rank = 0; rank < communicator->size(); ++rank) ranks_.push_back(rank);
  }

  void Run(const char* name, const std::vector<int64_t>& counts, int rounds) {
    std::vector<std::vector<float>> in, out;
    std::vector<Piece> pieces;
    for (const int64_t count : counts) {
      in.emplace_back(count, 1.0f);
      out.emplace_back(count, 0.0f);
    }
    for (size_t i = 0; i < counts.size(); ++i) pieces.push_back({in[i].data(), out[i].data(), counts[i]});
    std::vector<double> ours, raw;
    for (int round = 0; round < rounds + 2; ++round) {
      Meet();
      double begin = Now();
      for (const Piece& piece : pieces) Raw(piece);
      const double raw_seconds = Now() - begin;
      Meet();
      begin = Now();
      Outcome outcome;
      communicator_->AllReduce({"benchmark", ranks_}, DataType::kFloat32, Reduction::kSum, 1.0, pieces,
                               outcome.done());
      CheckOk(outcome.Wait());
      const double our_seconds = Now() - begin;
      if (round < 2) continue;
      ours.push_back(1e3 * our_seconds);
      raw.push_back(1e3 * raw_seconds);
    }
    CHECK(out[0][0] == static_cast<float>(communicator_->size()));
    if (communicator_->rank() > 0) return;
    std::printf("%-18s whale %8.3f ms   MPI_Allreduce %8.3f ms   ratio %.2f\n", name, Median(ours), Median(raw),
                Median(ours) / Median(raw));
    std::fflush(stdout);
  }

  // What it costs to wait: rank 0 comes late, and rank 1 meanwhile sleeps, then computes. Of a core, the share that the
  // communicator's threads took; what a computation is longer by is within the noise of most machines.
  void Wait(double seconds, int times) {
    const double idle_from = ProcessorSeconds();
    for (int k = 0; k < times; ++k) MeetLate(seconds, [] {});
    const double idle = ProcessorSeconds() - idle_from;
    double taken = 0, computed = 0;
    for (int k = 0; k < times; ++k) {
      MeetLate(seconds, [&] {
        const double begin = Now(), all = ProcessorSeconds(), own = ProcessorSeconds(RUSAGE_THREAD);
        volatile double value = 1;
        while (Now() < begin + 0.9 * seconds) value = value * 1.0000001;
        computed += Now() - begin;
        taken += ProcessorSeconds() - all - (ProcessorSeconds(RUSAGE_THREAD) - own);
      });
    }
    if (communicator_->rank() != 1) return;
    std::printf("waiting %6.3f s takes, of a core, %5.1f %% while idle and %5.1f %% while computing\n", seconds,
                100 * idle / (seconds * times), 100 * taken / computed);
    std::fflush(stdout);
  }

 private:
  void Meet() {
    Outcome outcome;
    communicator_->Barrier({"meet", ranks_}, outcome.done());
    CheckOk(outcome.Wait());
  }

  // Rank 0 comes after `seconds`; rank 1 does `meanwhile` first.
  template <typename Meanwhile>
  void MeetLate(double seconds, const Meanwhile& meanwhile) {
    Meet();
    Outcome outcome;
    if (communicator_->rank() == 0) std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    communicator_->Barrier({"late", ranks_}, outcome.done());
    if (communicator_->rank() == 1) meanwhile();
    CheckOk(outcome.Wait());
  }

  // The progress thread waits for a call meanwhile, so that two threads never are in MPI together.
  void Raw(const Piece& piece) {
    CHECK(mpi_.Allreduce(piece.in, piece.out, static_cast<int>(piece.count), mpi::HandleOf<mpi::Datatype>(mpi::kFloat),
                         mpi::HandleOf<mpi::Op>(mpi::kSum), mpi::HandleOf<mpi::Comm>(mpi::kCommWorld)) == 0);
  }

  Communicator* const communicator_;
  mpi::Library mpi_{};
  std::vector<int> ranks_;
};

inline void Benchmark(const std::string& path, Communicator* communicator) {
  AllReduceRace race(path, communicator);
  race.Run("4 KiB", {1 << 10}, 200);
  race.Run("4 MiB", {1 << 20}, 60);
  race.Run("64 MiB", {1 << 24}, 12);
  race.Run("68 tensors, 21 MB", GradientCounts(), 12);
  race.Wait(0.005, 100);
  race.Wait(0.05, 20);
  race.Wait(1, 2);
}

}  // namespace whale

#endif  // WHALE_TESTS_KERNELS_BENCHMARK_H_
