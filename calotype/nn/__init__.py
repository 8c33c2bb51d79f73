"""Networks: tensors to tensors, without knowing what they are for."""
