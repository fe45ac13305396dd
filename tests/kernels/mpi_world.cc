// Started by mpiexec with the path of libmpi_abi.so.1: checks the collectives between processes.

#include <cstdio>
#include <string>

#include "kernels/communicator/world.h"
#include "tests/kernels/benchmark.h"
#include "tests/kernels/cases.h"
#include "tests/kernels/messages.h"

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  int rank = 0;
  int size = 0;
  whale::SetWorldTimeout(50);
  whale::CheckOk(whale::StartWorld(argv[1], &rank, &size));
  if (argc > 2 && std::string(argv[2]) == "--benchmark") {
    whale::Benchmark(argv[1], whale::World());
  } else {
    whale::RunCases(whale::World(), whale::CasesFor(size), 1, 0);
    whale::RunCases(whale::World(), whale::CasesFor(size), 16, 1000);
    whale::RunMessages(whale::World());
  }
  whale::StopWorld();
  if (rank == 0) std::printf("ok, %d ranks\n", size);
  return 0;
}
