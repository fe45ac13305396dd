#include "kernels/communicator/mpi_transport.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace whale {
namespace {

constexpr int64_t kMostBytes = int64_t{1} << 30;  // of one of MPI's messages: below the largest int

std::string ThreadLevel(int level) {
  if (level == mpi::kThreadSerialized) return "MPI_THREAD_SERIALIZED";
  if (level == mpi::kThreadFunneled) return "MPI_THREAD_FUNNELED";
  return level == mpi::kThreadSingle ? "MPI_THREAD_SINGLE" : std::to_string(level);
}

}  // namespace

Status MpiTransport::Start(const std::string& path, std::unique_ptr<Transport>* transport) {
  std::unique_ptr<MpiTransport> made(new MpiTransport);
  Status status = mpi::Load(path, &made->mpi_);
  if (status.ok()) status = made->Join();
  if (status.ok()) *transport = std::move(made);
  return status;
}

Status MpiTransport::Check(int code, const std::string& what) const {
  if (code == mpi::kSuccess) return Status();
  char text[mpi::kMaxErrorString] = "";
  int length = 0;
  if (mpi_.Error_string(code, text, &length) != mpi::kSuccess) length = 0;
  return Status(Code::kUnavailable, "MPI failed at " + what + ": " + std::string(text, length));
}

Status MpiTransport::StartThreads() {
  int initialized = 0;
  int provided = 0;
  Status status = Check(mpi_.Initialized(&initialized), "MPI_Initialized");
  if (!status.ok()) return status;
  if (initialized) {
    status = Check(mpi_.Query_thread(&provided), "MPI_Query_thread");
  } else {
    status = Check(mpi_.Init_thread(nullptr, nullptr, mpi::kThreadMultiple, &provided), "MPI_Init_thread");
    finalizes_ = status.ok();
  }
  if (!status.ok() || provided >= mpi::kThreadMultiple) return status;
  const std::string level = "the thread level " + ThreadLevel(provided) + ", and MPI_THREAD_MULTIPLE is needed: " +
                            "messages travel on a thread of their own.";
  return Status(Code::kInvalidArgument, initialized ? "the script has started MPI itself, with " + level
                                                    : "this MPI offers at most " + level);
}

Status MpiTransport::Join() {
  Status status = StartThreads();
  if (!status.ok()) return status;
  const mpi::Comm world = mpi::HandleOf<mpi::Comm>(mpi::kCommWorld);
  // A communicator of its own: messages of the script never meet these.
  status = Check(mpi_.Comm_dup(world, &world_), "MPI_Comm_dup");
  if (status.ok()) {
    const mpi::Errhandler errors_return = mpi::HandleOf<mpi::Errhandler>(mpi::kErrorsReturn);
    status = Check(mpi_.Comm_set_errhandler(world_, errors_return), "MPI_Comm_set_errhandler");
    // MPICH reports what it cannot tell the communicator of, like a copy from the memory of a process that has died, to
    // these: they would end this process too. A script that has started MPI itself has its own say in that.
    for (const uintptr_t comm : {mpi::kCommWorld, mpi::kCommSelf}) {
      if (!finalizes_ || !status.ok()) continue;
      status = Check(mpi_.Comm_set_errhandler(mpi::HandleOf<mpi::Comm>(comm), errors_return),
                     "MPI_Comm_set_errhandler");
    }
  }
  if (status.ok()) status = Check(mpi_.Comm_rank(world_, &rank_), "MPI_Comm_rank");
  if (status.ok()) status = Check(mpi_.Comm_size(world_, &size_), "MPI_Comm_size");
  int* bound = nullptr;
  int found = 0;
  if (status.ok()) {
    status = Check(mpi_.Comm_get_attr(world, mpi::kTagUpperBound, &bound, &found), "MPI_Comm_get_attr");
  }
  max_tag_ = found && bound != nullptr ? *bound : 32767;  // what every MPI has
  return status.ok() ? ExchangeDoors() : status;
}

Status MpiTransport::ExchangeDoors() {
  to_ring_.assign(size_, 0);
  const Doorbell::Address own = doorbell_.address();
  std::vector<Doorbell::Address> doors(size_, own);
  std::vector<std::shared_ptr<Transfer>> transfers;
  for (int rank = 0; rank < size_; ++rank) {
    if (rank == rank_) continue;
    transfers.push_back(Receive(rank, 0, doors[rank].data(), static_cast<int64_t>(own.size())));
    transfers.push_back(Send(rank, 0, own.data(), static_cast<int64_t>(own.size())));
  }
  for (const auto& transfer : transfers) {
    while (!transfer->done) {
      if (!Poll()) std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    if (!transfer->status.ok()) return transfer->status;
  }
  doorbell_.SetPeers(doors, rank_);
  return Status();
}

void MpiTransport::RingAround() {
  for (int rank = 0; rank < size_; ++rank) {
    if (to_ring_[rank]) doorbell_.Ring(rank, false);
    to_ring_[rank] = 0;
  }
}

bool MpiTransport::Wait(Clock::duration most) {
  RingAround();
  const Doorbell::Woken woken = doorbell_.Wait(most);
  if (woken != Doorbell::Woken::kRing) return woken == Doorbell::Woken::kAnswer;
  // A long message needs both ends: whoever sends one may have gone to sleep before this rank was there to take it.
  Poll();
  std::vector<char> answered(size_, 0);
  for (const auto& owner : owners_) {
    if (!owner->is_receive || !owner->transfer->awaited || answered[owner->peer]) continue;
    doorbell_.Ring(owner->peer, true);
    answered[owner->peer] = 1;
  }
  return true;
}

std::shared_ptr<Transfer> MpiTransport::Send(int to, int tag, const void* data, int64_t bytes) {
  to_ring_[to] = 1;
  return Post(bytes, to, false, [&](int64_t begin, int count, mpi::Request* request) {
    return mpi_.Isend(static_cast<const char*>(data) + begin, count, mpi::HandleOf<mpi::Datatype>(mpi::kByte), to, tag,
                      world_, request);
  });
}

std::shared_ptr<Transfer> MpiTransport::Receive(int from, int tag, void* data, int64_t bytes) {
  to_ring_[from] = 1;
  return PostReceive(from, tag, data, bytes);
}

std::shared_ptr<Transfer> MpiTransport::Listen(int from, int tag, void* data, int64_t bytes) {
  std::shared_ptr<Transfer> transfer = PostReceive(from, tag, data, bytes);
  transfer->awaited = false;
  return transfer;
}

std::shared_ptr<Transfer> MpiTransport::PostReceive(int from, int tag, void* data, int64_t bytes) {
  return Post(bytes, from, true, [&](int64_t begin, int count, mpi::Request* request) {
    return mpi_.Irecv(static_cast<char*>(data) + begin, count, mpi::HandleOf<mpi::Datatype>(mpi::kByte), from, tag,
                      world_, request);
  });
}

template <typename Begin>
std::shared_ptr<Transfer> MpiTransport::Post(int64_t bytes, int peer, bool is_receive, const Begin& begin_part) {
  auto pending = std::make_shared<Pending>(Pending{std::make_shared<Transfer>(), 0, is_receive, peer});
  int64_t begin = 0;
  do {
    const int count = static_cast<int>(std::min(bytes - begin, kMostBytes));
    mpi::Request request = nullptr;
    const int code = begin_part(begin, count, &request);
    if (code != mpi::kSuccess) {
      pending->transfer->status = Check(code, is_receive ? "MPI_Irecv" : "MPI_Isend");
      break;
    }
    requests_.push_back(request);
    owners_.push_back(pending);
    ++pending->parts;
    begin += count;
  } while (begin < bytes);
  pending->transfer->done = pending->parts == 0;
  return pending->transfer;
}

bool MpiTransport::Poll() {
  RingAround();
  const int count = static_cast<int>(requests_.size());
  if (count == 0) return false;
  indices_.resize(count);
  statuses_.resize(count);
  int done = 0;
  const int code = mpi_.Testsome(count, requests_.data(), &done, indices_.data(), statuses_.data());
  if (code != mpi::kSuccess && code != mpi::kErrorInStatus) {
    int error_class = 0;
    if (mpi_.Error_class(code, &error_class) != mpi::kSuccess || error_class != mpi::kErrorInStatus) {
      Status status = Check(code, "MPI_Testsome");
      status = Status(status.code(), status.message() + ". A rank may have died.");
      for (const auto& owner : owners_) {
        owner->transfer->status = status;
        owner->transfer->done = true;
      }
      requests_.clear();
      owners_.clear();
      return true;
    }
  }
  if (done == mpi::kUndefined || done == 0) return false;
  for (int i = 0; i < done; ++i) {
    std::shared_ptr<Pending>& owner = owners_[indices_[i]];
    Finish(owner.get(), statuses_[i], code != mpi::kSuccess);
    owner = nullptr;
  }
  // The order of what stays must not change anything, and does not: MPI matched the messages when they were posted.
  size_t kept = 0;
  for (size_t i = 0; i < owners_.size(); ++i) {
    if (owners_[i] == nullptr) continue;
    std::swap(owners_[kept], owners_[i]);
    requests_[kept++] = requests_[i];
  }
  owners_.resize(kept);
  requests_.resize(kept);
  return true;
}

void MpiTransport::Finish(Pending* pending, const mpi::MessageStatus& status, bool failed) {
  Transfer& transfer = *pending->transfer;
  int error_class = mpi::kSuccess;
  if (failed && status.error != mpi::kSuccess && mpi_.Error_class(status.error, &error_class) == mpi::kSuccess) {
    transfer.status = error_class == mpi::kErrorTruncate
                          ? Status(Code::kInvalidArgument, "a message is longer than what was expected.")
                          : Check(status.error, "a message");
  }
  int bytes = 0;
  const mpi::Datatype byte = mpi::HandleOf<mpi::Datatype>(mpi::kByte);
  // Of a send the count means nothing, and its bytes are known.
  if (error_class == mpi::kSuccess && transfer.status.ok() && pending->is_receive &&
      mpi_.Get_count(&status, byte, &bytes) == mpi::kSuccess) {
    transfer.bytes += bytes;
  }
  transfer.done = --pending->parts == 0;
}

void MpiTransport::Close(bool clean) {
  if (clean && finalizes_) mpi_.Finalize();
}

}  // namespace whale
