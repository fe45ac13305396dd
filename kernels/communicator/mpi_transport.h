// Bytes between processes by MPI.

#ifndef WHALE_KERNELS_COMMUNICATOR_MPI_TRANSPORT_H_
#define WHALE_KERNELS_COMMUNICATOR_MPI_TRANSPORT_H_

#include <memory>
#include <string>
#include <vector>

#include "kernels/communicator/doorbell.h"
#include "kernels/communicator/mpi_library.h"
#include "kernels/communicator/transport.h"

namespace whale {

class MpiTransport : public Transport {
 public:
  // Loads MPI from `path` and starts it, on the thread that will use the transport; waits for all ranks. Where the
  // process has started MPI already, it is used and not finalized. The script may use MPI too, from its own threads:
  // hence kInvalidArgument for less than MPI_THREAD_MULTIPLE.
  static Status Start(const std::string& path, std::unique_ptr<Transport>* transport);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int64_t max_tag() const override { return max_tag_; }

  std::shared_ptr<Transfer> Send(int to, int tag, const void* data, int64_t bytes) override;
  std::shared_ptr<Transfer> Receive(int from, int tag, void* data, int64_t bytes) override;
  std::shared_ptr<Transfer> Listen(int from, int tag, void* data, int64_t bytes) override;
  bool Poll() override;
  bool hears_all() const override { return doorbell_.reaches_all(); }
  bool Wait(Clock::duration most) override;
  void Wake() override { doorbell_.RingOwn(); }
  void Close(bool clean) override;

 private:
  // A message of more bytes than an int can count is several of MPI's.
  struct Pending {
    std::shared_ptr<Transfer> transfer;
    int parts;  // under way
    bool is_receive;
    int peer;
  };

  MpiTransport() = default;
  Status Join();
  // Starts MPI, or finds it started, and checks that several threads may call it.
  Status StartThreads();
  // Tells all ranks where to ring.
  Status ExchangeDoors();
  // Rings at those to whom something was begun since the last time.
  void RingAround();
  // `begin_part` begins the message of the bytes from `begin` on.
  template <typename Begin>
  std::shared_ptr<Transfer> Post(int64_t bytes, int peer, bool is_receive, const Begin& begin_part);
  std::shared_ptr<Transfer> PostReceive(int from, int tag, void* data, int64_t bytes);
  Status Check(int code, const std::string& what) const;
  void Finish(Pending* pending, const mpi::MessageStatus& status, bool failed);

  mpi::Library mpi_{};
  bool finalizes_ = false;
  mpi::Comm world_ = nullptr;
  int rank_ = 0;
  int size_ = 0;
  int64_t max_tag_ = 0;
  Doorbell doorbell_;
  std::vector<char> to_ring_;  // by rank
  // All requests under way, in one array for MPI, and whose they are.
  std::vector<mpi::Request> requests_;
  std::vector<std::shared_ptr<Pending>> owners_;
  std::vector<int> indices_;
  std::vector<mpi::MessageStatus> statuses_;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_MPI_TRANSPORT_H_
