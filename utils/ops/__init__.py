"""Operations on boxes, anchors, masks and semantic maps, as pure functions of tensors and arrays."""
