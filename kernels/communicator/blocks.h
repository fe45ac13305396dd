// Memory of one size that is used again and again.
//
// A fresh megabyte costs more page faults than it costs to send.

#ifndef WHALE_KERNELS_COMMUNICATOR_BLOCKS_H_
#define WHALE_KERNELS_COMMUNICATOR_BLOCKS_H_

#include <cstdint>
#include <memory>
#include <vector>

namespace whale {

class Blocks {
 public:
  static constexpr int64_t kBytes = 1 << 20;

  struct Return {
    Blocks* blocks;
    void operator()(char* block) const {
      if (blocks->free_.size() < kKept) {
        blocks->free_.emplace_back(block);
      } else {
        delete[] block;
      }
    }
  };
  using Block = std::unique_ptr<char[], Return>;

  // kBytes bytes. For one thread; goes back to the Blocks, which must outlive it.
  Block Take() {
    if (free_.empty()) return Block(new char[kBytes], Return{this});
    char* block = free_.back().release();
    free_.pop_back();
    return Block(block, Return{this});
  }
  Block None() { return Block(nullptr, Return{this}); }

 private:
  static constexpr size_t kKept = 32;
  std::vector<std::unique_ptr<char[]>> free_;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_BLOCKS_H_
