//! Models from a Hugging Face hub, through the `hf-hub` crate and the cache that all Hugging Face
//! programs share.
//!
//! A model that is in the cache whole is used without a word to the network; otherwise its files
//! are fetched at one commit, and the reference that makes them findable is written last, so that
//! an interrupted download is never mistaken for a model. To fetch a newer version of a branch,
//! name its commit (`org/name@commit`) or remove the model from the cache.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::checkpoint::{INDEX, SINGLE, read_index};
use crate::error::{Error, Result};

/// The hub that is asked unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// Files that are fetched when they exist, besides `config.json` and the weights.
const OPTIONAL: [&str; 7] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

/// Fetches the model `id` from the hub that the environment names, see [`Hub::from_env`] and
/// [`Hub::resolve`].
///
/// # Errors
/// As [`Hub::resolve`].
pub fn resolve(id: &str, progress: bool) -> Result<PathBuf> {
    Hub::from_env().resolve(id, progress)
}

/// A hub and the folder its files are kept in.
#[derive(Clone)]
pub struct Hub {
    endpoint: String,
    /// The folder `hub` of the cache; `None` when there is no home folder either.
    cache: Option<PathBuf>,
    token: Option<String>,
    offline: bool,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("offline", &self.offline)
            .finish()
    }
}

impl Hub {
    /// The hub that the environment names: `HF_ENDPOINT` its address, `HF_HUB_CACHE` or
    /// `HF_HOME`/hub the cache (else `~/.cache/huggingface/hub`), `HF_TOKEN` the access token
    /// (else the file `token` beside the cache), `HF_HUB_OFFLINE=1` use of the cache only.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// As [`Hub::from_env`], with the variables given by a function.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| var(name).filter(|v| !v.trim().is_empty());
        let home = var("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = var("XDG_CACHE_HOME").map(PathBuf::from);
            let home =
                || std::env::home_dir().filter(|h| !h.as_os_str().is_empty()).map(|h| h.join(".cache"));
            cache.or_else(home).map(|c| c.join("huggingface"))
        });
        let cache = var("HF_HUB_CACHE").map(PathBuf::from).or_else(|| home.as_ref().map(|h| h.join("hub")));
        let token = var("HF_TOKEN").or_else(|| std::fs::read_to_string(home.as_ref()?.join("token")).ok());
        let offline = var("HF_HUB_OFFLINE")
            .is_some_and(|v| matches!(v.trim().to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        Self {
            endpoint: var("HF_ENDPOINT")
                .unwrap_or_else(|| ENDPOINT.to_owned())
                .trim_end_matches('/')
                .to_owned(),
            cache,
            token: token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
            offline,
        }
    }

    /// The folder with the files of the model `id`: `org/name` or `org/name@revision`, where the
    /// revision is a branch, a tag or a commit. Fetches what is missing, with a progress bar on a
    /// terminal if `progress` is set.
    ///
    /// # Errors
    /// [`Error::Hub`] when the id is malformed, no such model exists or may be read, it is not in
    /// the cache and the network is not to be used or cannot be reached, or it has no safetensors
    /// weights; [`Error::Checkpoint`] when its index is malformed.
    pub fn resolve(&self, id: &str, progress: bool) -> Result<PathBuf> {
        let (name, revision) = parse_id(id)?;
        let Some(cache_dir) = &self.cache else {
            return Err(fail(id, "there is no folder to keep models in", "set HF_HOME to one"));
        };
        let cache = Cache::new(cache_dir.clone());
        let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
        if let Some(folder) = cached(&cache, &repo, revision) {
            return Ok(folder);
        }
        if self.offline {
            let what = format!("not in the cache {}, and HF_HUB_OFFLINE is set", cache_dir.display());
            return Err(fail(id, what, "unset HF_HUB_OFFLINE to fetch it, or give a folder"));
        }
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(progress)
            .with_retries(3)
            .build()
            .map_err(|e| self.api_error(id, "the model", &e))?;
        let info = api.repo(repo.clone()).info().map_err(|e| self.api_error(id, "the model", &e))?;
        if !is_commit(&info.sha) {
            return Err(fail(id, "the hub answers with a commit that is none", "check HF_ENDPOINT"));
        }
        let files: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();

        // All files from one commit, even if the branch moves meanwhile.
        let at = Repo::with_revision(name.to_owned(), RepoType::Model, info.sha.clone());
        let download = Download {
            hub: self,
            id,
            api: &api,
            repo: api.repo(at),
            cache: &cache,
            target: &repo,
            sha: &info.sha,
        };
        if !files.contains(&"config.json") {
            return Err(fail(
                id,
                "the model has no config.json",
                "give the id of a model in transformers' format",
            ));
        }
        for file in OPTIONAL.iter().filter(|f| files.contains(*f)) {
            download.file(file)?;
        }
        if files.contains(&SINGLE) {
            download.file(SINGLE)?;
        } else if files.contains(&INDEX) {
            let index = download.file(INDEX)?;
            for shard in read_index(&index)?.keys() {
                download.file(shard)?;
            }
        } else {
            let what = format!("the model has neither {SINGLE} nor {INDEX}");
            return Err(fail(id, what, "convert its weights to safetensors, and give the folder"));
        }
        download.file("config.json")?;
        let reference = |e| Error::io("write", cache_dir, e);
        cache.repo(repo.clone()).create_ref(&info.sha).map_err(reference)?;
        cached(&cache, &repo, revision)
            .ok_or_else(|| fail(id, "the files are not whole after the download", "try again"))
    }

    fn api_error(&self, id: &str, what: &str, e: &ApiError) -> Error {
        let hub = &self.endpoint;
        match e {
            ApiError::RequestError(e) => match **e {
                ureq::Error::StatusCode(404) => fail(
                    id,
                    format!("{hub} does not know {what}"),
                    "check the spelling and the revision; a folder of your own needs a path such as ./folder",
                ),
                ureq::Error::StatusCode(code @ (401 | 403)) => fail(
                    id,
                    format!(
                        "{hub} does not give out {what} (HTTP {code}): no such model, or a private or gated one"
                    ),
                    "check the spelling; for a private or gated model accept its terms and set HF_TOKEN",
                ),
                ureq::Error::StatusCode(code) => {
                    fail(id, format!("{hub} answers HTTP {code} for {what}"), "try again later")
                }
                ref e => fail(
                    id,
                    format!("{hub} cannot be reached for {what}: {e}"),
                    "check the network and HF_ENDPOINT, or give a folder with the model's files",
                ),
            },
            ApiError::LockAcquisition(_) => fail(
                id,
                format!("another process is fetching {what}"),
                "wait for it to finish, then try again",
            ),
            ApiError::IoError(e) => fail(
                id,
                format!("{what} cannot be stored: {e}"),
                "check the disk and HF_HOME, then try again",
            ),
            e => fail(id, format!("fetching {what} failed: {e}"), "try again; check HF_ENDPOINT"),
        }
    }
}

/// A download of the files of one commit.
struct Download<'a> {
    hub: &'a Hub,
    id: &'a str,
    api: &'a Api,
    repo: ApiRepo,
    cache: &'a Cache,
    target: &'a Repo,
    sha: &'a str,
}

impl Download<'_> {
    /// Fetches one file unless it is there, and checks its size.
    fn file(&self, name: &str) -> Result<PathBuf> {
        let what = format!("the file {name}");
        let fetched = |e: &ApiError| self.hub.api_error(self.id, &what, e);
        let metadata = self.api.metadata(&self.repo.url(name)).map_err(|e| fetched(&e))?;
        let (etag, size) = (metadata.etag(), metadata.size() as u64);
        if metadata.commit_hash() != self.sha || !is_plain(etag) {
            let what =
                format!("{} answers with another commit or a malformed tag for {name}", self.hub.endpoint);
            return Err(fail(self.id, what, "try again; check HF_ENDPOINT"));
        }
        let repo = self.cache.repo(self.target.clone());
        let pointer = repo.pointer_path(self.sha).join(name);
        if file_size(&pointer) == Some(size) {
            return Ok(pointer);
        }
        if pointer.symlink_metadata().is_ok() {
            std::fs::remove_file(&pointer).map_err(|e| Error::io("replace", &pointer, e))?;
        }
        // What is left of an earlier attempt is continued if it can be a beginning of the file.
        let blob = repo.blob_path(etag);
        let part = blob.with_extension("part");
        if file_size(&part).is_some_and(|n| n >= size) {
            let _ = std::fs::remove_file(&part);
        }
        self.repo.download(name).map_err(|e| fetched(&e))?;
        match file_size(&pointer) {
            Some(n) if n == size => Ok(pointer),
            got => {
                for path in [&pointer, &blob, &part] {
                    let _ = std::fs::remove_file(path);
                }
                let got = got.map_or("nothing".to_owned(), |n| format!("{n} bytes"));
                let what = format!("the file {name} is {size} bytes on the hub, and {got} arrived");
                Err(fail(self.id, what, "try again"))
            }
        }
    }
}

fn fail(id: &str, what: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Hub { id: id.to_owned(), what: what.into(), hint: hint.into() }
}

/// The folder of a model that the cache holds whole.
fn cached(cache: &Cache, repo: &Repo, revision: &str) -> Option<PathBuf> {
    let of_reference = cache.repo(repo.clone()).get("config.json");
    let folder = match of_reference {
        Some(config) => config.parent()?.to_path_buf(),
        None if is_commit(revision) => cache.repo(repo.clone()).pointer_path(revision),
        None => return None,
    };
    is_whole(&folder).then_some(folder)
}

/// Whether a snapshot has a configuration and all its weights.
fn is_whole(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).exists();
    has("config.json")
        && (has(SINGLE)
            || read_index(&folder.join(INDEX)).is_ok_and(|shards| shards.keys().all(|shard| has(shard))))
}

fn file_size(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().filter(|m| m.is_file()).map(|m| m.len())
}

/// Letters, digits, `-`, `_` and dots, not beginning with a dot: safe as a file name.
fn is_plain(s: &str) -> bool {
    !s.is_empty()
        && s.len() <= 200
        && !s.starts_with('.')
        && !s.contains("..")
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_commit(s: &str) -> bool {
    s.len() == 40 && s.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Splits an id into name and revision.
fn parse_id(id: &str) -> Result<(&str, &str)> {
    let (name, revision) = id.split_once('@').unwrap_or((id, "main"));
    let parts = name.split('/');
    let good_name = parts.clone().count() <= 2 && parts.clone().all(is_plain);
    let good_revision = revision.split('/').all(is_plain);
    if !good_name || !good_revision {
        let what = "neither a folder that exists nor the id of a model";
        return Err(fail(id, what, "give a folder, org/name or org/name@revision"));
    }
    Ok((name, revision))
}
