#include "tessera/tensor_view.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <vector>

namespace tessera {
namespace {

/// View of a tensor of float32, 4 elements into a buffer, with these extents and strides.
TensorView view_of(std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
                   bool give_strides = true) {
  static float memory[64];
  DLTensor tensor{};
  tensor.data = memory;
  tensor.device = {kDLCUDA, 3};
  tensor.ndim = static_cast<std::int32_t>(shape.size());
  tensor.dtype = {kDLFloat, 32, 1};
  tensor.shape = shape.data();
  tensor.strides = give_strides ? strides.data() : nullptr;
  tensor.byte_offset = 16;
  const TensorView view = TensorView::of(tensor);
  EXPECT_EQ(view.data, memory + 4);
  EXPECT_EQ(view.device.device_type, kDLCUDA);
  EXPECT_EQ(view.device.device_id, 3);
  EXPECT_EQ(view.dtype.code, kDLFloat);
  EXPECT_TRUE(view.given());
  return view;
}

TEST(TensorView, DefaultStandsForNotGiven) { EXPECT_FALSE(TensorView{}.given()); }

TEST(TensorView, AnOffsetIntoNoMemoryIsNoAddress) {
  std::int64_t shape[] = {98, 4};
  DLTensor tensor{};
  tensor.device = {kDLCPU, 0};
  tensor.ndim = 2;
  tensor.dtype = {kDLFloat, 32, 1};
  tensor.shape = shape;
  tensor.byte_offset = 64;
  EXPECT_EQ(TensorView::of(tensor).data, nullptr);
}

TEST(TensorView, EveryPartOfTheHostIsTheHost) {
  DLTensor tensor{};
  tensor.device = {kDLCPU, 3};
  EXPECT_EQ(TensorView::of(tensor).device.device_type, kDLCPU);
  EXPECT_EQ(TensorView::of(tensor).device.device_id, 0);
}

TEST(TensorView, WithoutStridesATensorIsContiguous) {
  const TensorView view = view_of({3, 4}, {}, /*give_strides=*/false);
  EXPECT_EQ(view.num_elements, 12);
  EXPECT_TRUE(view.contiguous);
}

TEST(TensorView, RowMajorStridesAreContiguous) {
  EXPECT_TRUE(view_of({3, 4}, {4, 1}).contiguous);
  EXPECT_TRUE(view_of({2, 3, 4}, {12, 4, 1}).contiguous);
}

TEST(TensorView, OtherStridesAreNot) {
  EXPECT_FALSE(view_of({3, 4}, {1, 3}).contiguous);  // transposed
  EXPECT_FALSE(view_of({3, 4}, {8, 1}).contiguous);  // part of the columns
  EXPECT_FALSE(view_of({4}, {2}).contiguous);        // every other element
  EXPECT_FALSE(view_of({4}, {-1}).contiguous);       // backwards
  EXPECT_FALSE(view_of({3, 4}, {0, 1}).contiguous);  // broadcast
}

TEST(TensorView, StridesOfSingleElementAxesDoNotMatter) {
  EXPECT_TRUE(view_of({3, 1, 4}, {4, 99, 1}).contiguous);
  EXPECT_TRUE(view_of({1}, {7}).contiguous);
}

TEST(TensorView, ScalarHasOneElementAndEmptyHasNone) {
  EXPECT_EQ(view_of({}, {}).num_elements, 1);
  const TensorView empty = view_of({3, 0, 4}, {9, 9, 9});
  EXPECT_EQ(empty.num_elements, 0);
  EXPECT_TRUE(empty.contiguous);
}

TEST(TensorView, KeepsTheFirstAxes) {
  const TensorView view = view_of({2, 3, 4}, {24, 8, 1});
  EXPECT_EQ(view.ndim, 3);
  EXPECT_EQ(std::vector<std::int64_t>(view.shape, view.shape + 3),
            (std::vector<std::int64_t>{2, 3, 4}));
  EXPECT_EQ(std::vector<std::int64_t>(view.strides, view.strides + 3),
            (std::vector<std::int64_t>{24, 8, 1}));
  const TensorView many = view_of({5, 1, 1, 1, 2}, {}, /*give_strides=*/false);
  EXPECT_EQ(many.ndim, 5);
  EXPECT_EQ(many.shape[0], 5);
  EXPECT_EQ(many.strides[0], 2);
  EXPECT_EQ(many.num_elements, 10);
}

TEST(TensorView, IsMadeFromAShape) {
  const float memory[6] = {};
  const TensorView view = TensorView::of(memory, {kDLFloat, 32, 1}, {2, 3});
  EXPECT_EQ(view.data, memory);
  EXPECT_EQ(view.num_elements, 6);
  EXPECT_EQ(view.ndim, 2);
  EXPECT_EQ(view.shape[1], 3);
  EXPECT_EQ(view.strides[0], 3);
  EXPECT_EQ(view.strides[1], 1);
  EXPECT_TRUE(view.contiguous);
  EXPECT_EQ(view.device.device_type, kDLCPU);
}

TEST(TensorView, ImpossibleShapesDoNotPassForOthers) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  constexpr std::int64_t kHuge = std::int64_t{1} << 32;
  const auto elements_of = [](std::initializer_list<std::int64_t> shape) {
    const std::int64_t elements = TensorView::of(nullptr, {kDLInt, 32, 1}, shape).num_elements;
    EXPECT_EQ(view_of(shape, {}, /*give_strides=*/false).num_elements, elements);
    return elements;
  };
  EXPECT_EQ(elements_of({kHuge, kHuge}), kMost);  // not 0
  EXPECT_EQ(elements_of({kHuge, kHuge, 3, 1}), kMost);
  EXPECT_EQ(elements_of({-2, -3}), -3);  // not 6
  EXPECT_EQ(elements_of({4, -2}), -2);
  EXPECT_EQ(elements_of({0, -2}), -2);
}

TEST(TensorView, FewerThanNoAxesDoNotPassForANumber) {
  DLTensor tensor{};
  tensor.ndim = -1;
  tensor.dtype = {kDLInt, 32, 1};
  EXPECT_EQ(TensorView::of(tensor).ndim, -1);
  EXPECT_EQ(TensorView::of(tensor).num_elements, -1);  // not 1
}

TEST(TensorView, OfAShapeOnAnyPartOfTheHostIsOnTheHost) {
  const float memory[6] = {};
  const TensorView view = TensorView::of(memory, {kDLFloat, 32, 1}, {2, 3}, {kDLCPU, 3});
  EXPECT_EQ(view.device.device_id, 0);
}

template <typename T>
void expect_view_of_integers() {
  const std::vector<T> elements(5);
  const TensorView view = TensorView::of(std::span(elements));
  EXPECT_EQ(view.data, elements.data());
  EXPECT_EQ(view.num_elements, 5);
  EXPECT_EQ(view.dtype.code, std::is_signed_v<T> ? kDLInt : kDLUInt);
  EXPECT_EQ(view.dtype.bits, 8 * sizeof(T));
  EXPECT_EQ(view.dtype.lanes, 1);
  EXPECT_EQ(view.device.device_type, kDLCPU);
  EXPECT_TRUE(view.contiguous);
}

TEST(TensorView, KnowsTheTypeOfASpan) {
  expect_view_of_integers<std::int8_t>();
  expect_view_of_integers<std::uint8_t>();
  expect_view_of_integers<std::int16_t>();
  expect_view_of_integers<std::uint16_t>();
  expect_view_of_integers<std::int32_t>();
  expect_view_of_integers<std::uint32_t>();
  expect_view_of_integers<std::int64_t>();
  expect_view_of_integers<std::uint64_t>();
}

}  // namespace
}  // namespace tessera
