// The functions of MPI that whale uses, found in a library at run time.
//
// The library has the standard ABI of MPI 5: the values below hold for every MPI that offers it, so nothing of an MPI
// is needed to build whale.

#ifndef WHALE_KERNELS_COMMUNICATOR_MPI_LIBRARY_H_
#define WHALE_KERNELS_COMMUNICATOR_MPI_LIBRARY_H_

#include <cstdint>
#include <string>

#include "kernels/communicator/status.h"

namespace whale {
namespace mpi {

// Handles are pointers to types that nobody looks into.
using Comm = struct CommHandle*;
using Datatype = struct DatatypeHandle*;
using Errhandler = struct ErrhandlerHandle*;
using Op = struct OpHandle*;
using Request = struct RequestHandle*;

// What the standard ABI says of a status: three public fields and five of the library's own.
struct MessageStatus {
  int source;
  int tag;
  int error;
  int internal[5];
};

constexpr uintptr_t kCommWorld = 0x101;        // MPI_COMM_WORLD, MPI-5 standard ABI
constexpr uintptr_t kCommSelf = 0x102;         // MPI_COMM_SELF, MPI-5 standard ABI
constexpr uintptr_t kErrorsReturn = 0x143;     // MPI_ERRORS_RETURN, MPI-5 standard ABI
constexpr uintptr_t kFloat = 0x210;            // MPI_FLOAT, MPI-5 standard ABI
constexpr uintptr_t kByte = 0x247;             // MPI_BYTE, MPI-5 standard ABI
constexpr uintptr_t kSum = 0x21;               // MPI_SUM, MPI-5 standard ABI
constexpr uintptr_t kInPlace = 1;              // MPI_IN_PLACE, MPI-5 standard ABI
constexpr int kSuccess = 0;                    // MPI_SUCCESS, MPI-5 standard ABI
constexpr int kUndefined = -32766;             // MPI_UNDEFINED, MPI-5 standard ABI
constexpr int kErrorInStatus = 19;             // MPI_ERR_IN_STATUS, MPI-5 standard ABI
constexpr int kErrorTruncate = 15;             // MPI_ERR_TRUNCATE, MPI-5 standard ABI
constexpr int kThreadSingle = 0;               // MPI_THREAD_SINGLE, MPI-5 standard ABI
constexpr int kThreadFunneled = 1024;          // MPI_THREAD_FUNNELED, MPI-5 standard ABI
constexpr int kThreadSerialized = 2048;        // MPI_THREAD_SERIALIZED, MPI-5 standard ABI
constexpr int kThreadMultiple = 4096;          // MPI_THREAD_MULTIPLE, MPI-5 standard ABI
constexpr int kTagUpperBound = 501;            // MPI_TAG_UB, MPI-5 standard ABI
constexpr int kMaxErrorString = 512;           // MPI_MAX_ERROR_STRING, MPI-5 standard ABI

template <typename Handle>
Handle HandleOf(uintptr_t value) {
  return reinterpret_cast<Handle>(value);
}

struct Library {
  int (*Initialized)(int* flag);
  int (*Init_thread)(int* argc, char*** argv, int required, int* provided);
  int (*Query_thread)(int* provided);
  int (*Finalize)();
  int (*Comm_rank)(Comm, int* rank);
  int (*Comm_size)(Comm, int* size);
  int (*Comm_dup)(Comm, Comm* copy);
  int (*Comm_get_attr)(Comm, int key, void* value, int* flag);
  int (*Comm_set_errhandler)(Comm, Errhandler);
  int (*Isend)(const void* data, int count, Datatype, int to, int tag, Comm, Request*);
  int (*Irecv)(void* data, int count, Datatype, int from, int tag, Comm, Request*);
  int (*Testsome)(int count, Request[], int* done, int indices[], MessageStatus[]);
  int (*Get_count)(const MessageStatus*, Datatype, int* count);
  int (*Error_class)(int code, int* error_class);
  int (*Error_string)(int code, char* text, int* length);
  int (*Allreduce)(const void* in, void* out, int count, Datatype, Op, Comm);
};

// Loads the library at `path`, for the rest of the process.
Status Load(const std::string& path, Library* library);

}  // namespace mpi
}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_MPI_LIBRARY_H_
