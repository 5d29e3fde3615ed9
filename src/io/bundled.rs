//! The models that are part of the program: `assets/bard-diffusion` and `assets/planner`, each described in its
//! `README.md`.

/// The files of a model in the program.
pub(super) struct Bundled {
    pub name: &'static str,
    /// Its `config.json`.
    pub config: &'static [u8],
    /// Its `tokenizer.json`.
    pub tokenizer: &'static [u8],
    /// Its `model.safetensors`.
    pub weights: &'static [u8],
}

/// Bytes that start at a multiple of 64, so that weights can be read in place.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

static BARD_WEIGHTS: &Aligned<[u8]> =
    &Aligned(*include_bytes!("../../assets/bard-diffusion/model.safetensors"));
static PLANNER_WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../../assets/planner/model.safetensors"));

/// The one that is meant where none is named.
pub(super) static BARD: Bundled = Bundled {
    name: "bard-diffusion",
    config: include_bytes!("../../assets/bard-diffusion/config.json"),
    tokenizer: include_bytes!("../../assets/bard-diffusion/tokenizer.json"),
    weights: &BARD_WEIGHTS.0,
};

/// Solves problems of the countdown game.
static PLANNER: Bundled = Bundled {
    name: "planner",
    config: include_bytes!("../../assets/planner/config.json"),
    tokenizer: include_bytes!("../../assets/planner/tokenizer.json"),
    weights: &PLANNER_WEIGHTS.0,
};

/// The model of a name.
pub(super) fn named(name: &str) -> Option<&'static Bundled> {
    match name {
        "bundled" => Some(&BARD),
        _ => [&BARD, &PLANNER].into_iter().find(|model| model.name == name),
    }
}
