//! The model that is part of the program: `assets/bard-diffusion`, described in its `README.md`.

/// Its name.
pub(super) const NAME: &str = "bard-diffusion";
/// Its `config.json`.
pub(super) const CONFIG: &[u8] = include_bytes!("../../assets/bard-diffusion/config.json");
/// Its `tokenizer.json`.
pub(super) const TOKENIZER: &[u8] = include_bytes!("../../assets/bard-diffusion/tokenizer.json");

/// Bytes that start at a multiple of 64, so that weights can be read in place.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../../assets/bard-diffusion/model.safetensors"));

/// Its `model.safetensors`.
pub(super) fn weights() -> &'static [u8] {
    &ALIGNED.0
}
