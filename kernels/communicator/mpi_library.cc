#include "kernels/communicator/mpi_library.h"

#include <dlfcn.h>

namespace whale {
namespace mpi {
namespace {

template <typename Function>
bool Find(void* handle, const char* name, Function* function, std::string* missing) {
  void* symbol = dlsym(handle, name);
  if (symbol == nullptr) *missing += std::string(missing->empty() ? "" : ", ") + name;
  *function = reinterpret_cast<Function>(symbol);
  return symbol != nullptr;
}

}  // namespace

Status Load(const std::string& path, Library* library) {
  // Its symbols stay its own: TensorFlow's libraries must not find them.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    return Status(Code::kUnavailable, "MPI cannot be loaded from '" + path + "': " + (reason ? reason : "no reason") +
                                          ".");
  }
  std::string missing;
  Find(handle, "MPI_Initialized", &library->Initialized, &missing);
  Find(handle, "MPI_Init_thread", &library->Init_thread, &missing);
  Find(handle, "MPI_Query_thread", &library->Query_thread, &missing);
  Find(handle, "MPI_Finalize", &library->Finalize, &missing);
  Find(handle, "MPI_Comm_rank", &library->Comm_rank, &missing);
  Find(handle, "MPI_Comm_size", &library->Comm_size, &missing);
  Find(handle, "MPI_Comm_dup", &library->Comm_dup, &missing);
  Find(handle, "MPI_Comm_get_attr", &library->Comm_get_attr, &missing);
  Find(handle, "MPI_Comm_set_errhandler", &library->Comm_set_errhandler, &missing);
  Find(handle, "MPI_Isend", &library->Isend, &missing);
  Find(handle, "MPI_Irecv", &library->Irecv, &missing);
  Find(handle, "MPI_Testsome", &library->Testsome, &missing);
  Find(handle, "MPI_Get_count", &library->Get_count, &missing);
  Find(handle, "MPI_Error_class", &library->Error_class, &missing);
  Find(handle, "MPI_Error_string", &library->Error_string, &missing);
  Find(handle, "MPI_Allreduce", &library->Allreduce, &missing);
  if (missing.empty()) return Status();
  return Status(Code::kUnavailable, "'" + path + "' is no MPI library: it lacks " + missing + ".");
}

}  // namespace mpi
}  // namespace whale
