//! All files of a model, opened and checked against one another.

use std::path::{Path, PathBuf};

use super::bundled::{self, Bundled};
use super::checkpoint::Checkpoint;
use super::json::Object;
use super::special::{Release, Sources, SpecialIds};
use super::tokenizer::Tokenizer;
use super::{hf_config, hub};
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// The files of a model.
#[derive(Debug)]
pub struct ModelFiles {
    /// The folder's name, the hub id, or the name of the bundled model.
    pub name: String,
    /// The folder; `None` for the bundled model.
    pub path: Option<PathBuf>,
    pub config: ModelConfig,
    pub special: SpecialIds,
    /// The logits of row i predict position i + 1 (`shift` in config.json; true if absent).
    pub shift: bool,
    /// The mask id is a token of its own, not an ordinary word that doubles as the mask.
    pub mask_is_dedicated: bool,
    /// The tokenizer's own program puts the bos token before a text.
    pub add_bos: bool,
    pub checkpoint: Checkpoint,
    /// `None` when the folder has none; text cannot go in or out then, ids can.
    pub tokenizer: Option<Tokenizer>,
    /// What is odd about the files, for people.
    pub notes: Vec<String>,
}

/// The JSON files beside a checkpoint.
struct Configs {
    config: Object,
    generation: Option<Object>,
    tokenizer: Option<Object>,
    tokens_map: Option<Object>,
}

impl ModelFiles {
    /// The model that a person names: `None` or `bundled` is the bundled one, `planner` the second one, a folder (or a file
    /// in it) that exists is opened, anything else is the id of a model on a Hugging Face hub.
    ///
    /// # Errors
    /// As [`ModelFiles::open`] and [`hub::resolve`]; [`Error::Io`] for what looks like a path and
    /// does not exist; [`Error::Request`] for an empty name.
    pub fn find(spec: Option<&str>) -> Result<Self> {
        let Some(spec) = spec else { return Self::bundled() };
        if spec.trim().is_empty() {
            return Err(Error::request(
                "the model's name is empty: give a folder or a Hugging Face id; for the bundled model leave \
                 --model out and LACUNA_MODEL unset",
            ));
        }
        let path = Path::new(spec);
        if path.exists() {
            return Self::open(path);
        }
        if let Some(model) = bundled::named(spec) {
            return Self::of_bundled(model);
        }
        let like_a_path = path.is_absolute()
            || spec.starts_with(['.', '~'])
            || spec.ends_with('/')
            || spec.contains('\\')
            || spec.matches('/').count() > 1 && !spec.contains('@')
            || spec.ends_with(".safetensors")
            || spec.ends_with(".json");
        if like_a_path {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::io("open", path, missing));
        }
        let mut files = Self::open(&hub::resolve(spec, true)?)?;
        files.name = spec.to_owned();
        Ok(files)
    }

    /// Opens a folder with `config.json`, weights (see [`Checkpoint::open`]) and, usually,
    /// `tokenizer.json`; or one weights file, with the other files beside it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Config`], [`Error::Checkpoint`] or [`Error::Tokenizer`], naming
    /// the file that is missing or malformed.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, true)
    }

    /// As [`find`](Self::find), for what needs the shape and the tokenizer alone: a folder without weights, or its
    /// `config.json`, will do.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn find_shape(spec: Option<&str>) -> Result<Self> {
        match spec.map(Path::new) {
            Some(path) if path.exists() => Self::open_with(path, false),
            _ => Self::find(spec),
        }
    }

    fn open_with(dir: &Path, with_weights: bool) -> Result<Self> {
        let meta = std::fs::metadata(dir).map_err(|e| Error::io("open", dir, e))?;
        let weights = dir;
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = if meta.is_dir() { dir } else { parent };
        let optional = |name: &str| Object::read_if_present(&dir.join(name));
        let configs = Configs {
            config: Object::read(&dir.join("config.json"))?,
            generation: optional("generation_config.json")?,
            tokenizer: optional("tokenizer_config.json")?,
            tokens_map: optional("special_tokens_map.json")?,
        };
        let config = hf_config::from_object(&configs.config)?;
        let mut notes = Vec::new();
        let tokenizer = open_tokenizer(dir, configs.tokenizer.as_ref(), &mut notes)?;
        let checkpoint = if with_weights {
            Checkpoint::open(weights)?
        } else {
            Checkpoint::empty(&dir.join("config.json"))
        };
        Self::assemble(
            folder_name(dir),
            Some(dir.to_path_buf()),
            configs,
            config,
            tokenizer,
            checkpoint,
            notes,
        )
    }

    /// The model that is part of the program.
    ///
    /// # Errors
    /// None in a program as it was built; those of [`ModelFiles::open`] otherwise.
    pub fn bundled() -> Result<Self> {
        Self::of_bundled(&bundled::BARD)
    }

    fn of_bundled(model: &Bundled) -> Result<Self> {
        let at = |file: &str| PathBuf::from(format!("(bundled) {}/{file}", model.name));
        let configs = Configs {
            config: Object::parse(model.config, &at("config.json"))?,
            generation: None,
            tokenizer: None,
            tokens_map: None,
        };
        let config = hf_config::from_object(&configs.config)?;
        let tokenizer = Tokenizer::from_bytes(model.tokenizer)?;
        let name = at("model.safetensors").display().to_string();
        let checkpoint = Checkpoint::from_static(model.weights, &name)?;
        Self::assemble(model.name.into(), None, configs, config, Some(tokenizer), checkpoint, Vec::new())
    }

    fn assemble(
        name: String,
        path: Option<PathBuf>,
        configs: Configs,
        mut config: ModelConfig,
        tokenizer: Option<Tokenizer>,
        checkpoint: Checkpoint,
        mut notes: Vec<String>,
    ) -> Result<Self> {
        notes.extend_from_slice(checkpoint.notes());
        let wrapper = checkpoint.get("embed_tokens.weight").is_some()
            && checkpoint.iter().any(|(n, _)| n.starts_with("denoise_model."));
        if wrapper {
            adopt_added_rows(&mut config, &checkpoint, &mut notes);
        }
        let origin = configs.config.string("_name_or_path")?.unwrap_or_default();
        let release = Release::recognise(&config, wrapper, &[&name, origin]);
        let sources = Sources {
            config: &configs.config,
            generation: configs.generation.as_ref(),
            tokenizer_config: configs.tokenizer.as_ref(),
            tokens_map: configs.tokens_map.as_ref(),
            release,
            tokenizer: tokenizer.as_ref(),
            vocab_size: config.vocab_size,
        };
        let special = sources.resolve(&mut notes)?;
        let mask_is_dedicated = sources.mask_is_dedicated(special.mask.as_ref());
        if special.mask.is_none() {
            notes.push("no file names a mask id: give one to denoise, or decode autoregressively".into());
        }
        match &tokenizer {
            None => notes.push("no tokenizer: token ids can go in and out, text cannot".into()),
            Some(t) if t.vocab_size() > config.vocab_size => notes.push(format!(
                "the tokenizer knows {} tokens, the embedding has {} rows: the last tokens cannot be used",
                t.vocab_size(),
                config.vocab_size
            )),
            Some(t) if t.vocab_size() < config.vocab_size => notes.push(format!(
                "the embedding has {} rows, the tokenizer knows {} tokens: the last rows stand for no text",
                config.vocab_size,
                t.vocab_size()
            )),
            Some(_) => {}
        }
        note_dtypes(&configs.config, &checkpoint, &mut notes);
        let shift = configs.config.bool("shift")?.unwrap_or(true);
        let add_bos = add_bos(configs.tokenizer.as_ref())?;
        Ok(Self {
            name,
            path,
            config,
            special,
            shift,
            mask_is_dedicated,
            add_bos,
            checkpoint,
            tokenizer,
            notes,
        })
    }
}

/// The wrapper of the paper's code adds rows for new tokens to the embedding and leaves
/// `vocab_size` of config.json as it was (DiffuGPT-M: 50257 stated, a mask row and a pad row more).
fn adopt_added_rows(config: &mut ModelConfig, checkpoint: &Checkpoint, notes: &mut Vec<String>) {
    const MOST: usize = 256;
    let Some(embedding) = checkpoint.get("embed_tokens.weight") else { return };
    if let [rows, width] = *embedding.shape()
        && width == config.width
        && rows > config.vocab_size
        && rows - config.vocab_size <= MOST
        && rows <= hf_config::MAX_VOCAB
    {
        notes.push(format!(
            "config.json states {} tokens, the embedding has {rows} rows: {rows} are used",
            config.vocab_size
        ));
        config.vocab_size = rows;
    }
}

/// Notes weights whose dtype is not the declared one, and mixed dtypes.
fn note_dtypes(config: &Object, checkpoint: &Checkpoint, notes: &mut Vec<String>) {
    let mut bytes = std::collections::BTreeMap::new();
    for (_, tensor) in checkpoint.iter() {
        *bytes.entry(tensor.dtype()).or_insert(0u64) += tensor.bytes().len() as u64;
    }
    let Some((&main, _)) = bytes.iter().max_by_key(|(_, n)| **n) else { return };
    let declared = match hf_config::declared_dtype(config) {
        Some("float32") => "f32",
        Some("float16") => "f16",
        Some("bfloat16") => "bf16",
        Some(other) => other,
        None => return,
    };
    if declared != main.name() {
        notes.push(format!("config.json declares {declared} weights, the file holds {main}"));
    }
}

pub(super) fn open_tokenizer(
    dir: &Path,
    config: Option<&Object>,
    notes: &mut Vec<String>,
) -> Result<Option<Tokenizer>> {
    let at = |name: &str| dir.join(name);
    if at("tokenizer.json").exists() {
        return Tokenizer::from_file(&at("tokenizer.json")).map(Some);
    }
    if at("vocab.json").exists() && at("merges.txt").exists() {
        let mut tokenizer = Tokenizer::from_gpt2_files(&at("vocab.json"), &at("merges.txt"))?;
        if let Some(config) = config {
            tokenizer.add_listed(config)?;
        }
        notes.push("no tokenizer.json: the tokenizer is read from vocab.json and merges.txt".into());
        return Ok(Some(tokenizer));
    }
    if at("tokenizer.model").exists() {
        notes.push(
            "tokenizer.model alone is not read; save a tokenizer.json with transformers' fast tokenizer"
                .into(),
        );
    }
    Ok(None)
}

/// Whether the tokenizer's own program puts bos before a text: `add_bos_token`, which LLaMA's
/// tokenizer class sets where the file does not say.
fn add_bos(config: Option<&Object>) -> Result<bool> {
    let Some(config) = config else { return Ok(false) };
    match config.bool("add_bos_token")? {
        Some(add) => Ok(add),
        None => {
            Ok(config.string("tokenizer_class")?.is_some_and(|class| class.starts_with("LlamaTokenizer")))
        }
    }
}

/// The name of a model by its folder: its last part, or `org/name` in the cache of a hub
/// (`models--org--name/snapshots/COMMIT`).
fn folder_name(dir: &Path) -> String {
    let full = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
    let parts: Vec<_> = full.iter().rev().take(3).map(|p| p.to_string_lossy()).collect();
    if let [_, snapshots, repo] = &parts[..]
        && snapshots == "snapshots"
        && let Some(name) = repo.strip_prefix("models--")
    {
        return name.replace("--", "/");
    }
    parts.first().map_or_else(|| dir.display().to_string(), |p| p.to_string())
}
