// How a list of tensors is cut into messages.
//
//   tensors   [ 300 KiB          ] [2] [9] [4] [ 90 KiB ] [1]
//   segments  [100 ][100 ][100 ]                [ 90     ]        large: sent from where they are, cut if too long
//                                  [2   9   4              1]     small: packed together, copied

#ifndef WHALE_KERNELS_COMMUNICATOR_SEGMENTS_H_
#define WHALE_KERNELS_COMMUNICATOR_SEGMENTS_H_

#include <cstdint>
#include <vector>

#include "kernels/communicator/blocks.h"

namespace whale {

// Bytes that lie together: where they are read and where their result goes. Either may be null where it is not needed.
struct Span {
  const char* in;
  char* out;
  int64_t bytes;
};

// One message: one span, or several small ones packed.
struct Segment {
  std::vector<Span> spans;
  int64_t bytes = 0;

  bool packed() const { return spans.size() > 1; }
};

// The segments of `spans`, in an order that depends on their sizes alone; none is longer than `segment_bytes`, at most
// Blocks::kBytes. Cuts lie between elements. Empty spans have no segment.
std::vector<Segment> CutIntoSegments(const std::vector<Span>& spans, int64_t element_bytes, int64_t segment_bytes);

// A length for which `parts` ranks each have several segments to overlap, not too short to be worth a message.
int64_t SegmentBytes(int64_t total_bytes, int64_t parts);

// The segment's input in one place: where it is, or packed into *block.
const char* PackedInput(const Segment& segment, Blocks* blocks, Blocks::Block* block);

// Where the segment's result can be written in one place: where it belongs, or *block; then Unpack brings it there.
char* PlaceForOutput(const Segment& segment, Blocks* blocks, Blocks::Block* block);
void Unpack(const Segment& segment, const Blocks::Block& block);

}  // namespace whale

#endif  // WHALE_KERNELS_COMMUNICATOR_SEGMENTS_H_
