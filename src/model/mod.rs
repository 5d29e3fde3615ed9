//! Networks: parameters, names, activations, layer loops.
