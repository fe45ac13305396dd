#include "kernels/communicator/operation.h"

namespace whale {

Status Operation::Taken(const Transfer& transfer, int rank, int64_t bytes) {
  ++moves_;
  const std::string with = title() + " with rank " + std::to_string(rank);
  if (!transfer.status.ok()) return Status(transfer.status.code(), with + ": " + transfer.status.message());
  if (bytes >= 0 && transfer.bytes != bytes) {
    return Status(Code::kInvalidArgument, with + " expected " + std::to_string(bytes) + " bytes and got " +
                                              std::to_string(transfer.bytes) + ".");
  }
  return Status();
}

}  // namespace whale
