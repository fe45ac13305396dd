// Which call of the program a call is: the same text on all ranks.

#ifndef WHALE_KERNELS_COMMUNICATOR_LABEL_H_
#define WHALE_KERNELS_COMMUNICATOR_LABEL_H_

#include <cstdint>
#include <string>
#include <utility>

namespace whale {

// Hashes are the same on all machines. That of two values differs from that of the same two in another order.
inline uint64_t Hash(uint64_t hash, uint64_t value) {
  // The finalizer of SplitMix64 (Steele, Lea & Flood 2014).
  uint64_t mixed = hash + 0x9e3779b97f4a7c15u + (value ^ (value >> 32)) * 0xd6e8feb86659fd93u;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
  return mixed ^ (mixed >> 31);
}

inline uint64_t HashOf(const std::string& text) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char each : text) hash = (hash ^ static_cast<unsigned char>(each)) * 1099511628211u;
  return Hash(hash, text.size());
}

// Calls are matched by the digest; the text is for errors, and travels with them only.
struct Label {
  Label() = default;
  Label(std::string text) : text(std::move(text)), digest(HashOf(this->text)) {}  // NOLINT: a text is a label
  Label(const char* text) : Label(std::string(text)) {}                           // NOLINT

  std::string text;
  uint64_t digest = 0;
};

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_LABEL_H_
