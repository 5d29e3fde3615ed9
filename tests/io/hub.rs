//! Fetching models, from a small static server on loopback that speaks as a hub does.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use lacuna::Error;
use lacuna::io::ModelFiles;
use lacuna::io::hub::Hub;
use serde_json::json;
use tiny_http::{Header, Request, Response, Server};

use super::support::{TOKENIZER, f32s, gpt2, safetensors};

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one repository, `org/tiny`.
pub struct Fake {
    pub address: String,
    state: Arc<State>,
    server: Arc<Server>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    files: Vec<(&'static str, Vec<u8>)>,
    /// A token that requests must carry.
    token: Option<&'static str>,
    /// Weights end before their last byte.
    cut: AtomicBool,
    requests: AtomicUsize,
    seen: Mutex<Vec<String>>,
}

impl Fake {
    pub fn new(files: Vec<(&'static str, Vec<u8>)>, token: Option<&'static str>) -> Self {
        let server = Arc::new(Server::http("127.0.0.1:0").unwrap());
        let address = format!("http://{}", server.server_addr().to_ip().unwrap());
        let state = Arc::new(State { files, token, ..State::default() });
        let thread = std::thread::spawn({
            let (server, state, address) = (server.clone(), state.clone(), address.clone());
            move || {
                for request in server.incoming_requests() {
                    state.answer(request, &address);
                }
            }
        });
        Self { address, state, server, thread: Some(thread) }
    }

    fn hub(&self, home: &Path, more: &[(&str, &str)]) -> Hub {
        hub(&self.address, home, more)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.unblock();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn hub(address: &str, home: &Path, more: &[(&str, &str)]) -> Hub {
    Hub::from_vars(|name| match name {
        "HF_ENDPOINT" => Some(format!("{address}/")),
        "HF_HOME" => Some(home.to_str().unwrap().to_owned()),
        _ => more.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()),
    })
}

fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).unwrap()
}

impl State {
    fn answer(&self, request: Request, address: &str) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let url = request.url().to_owned();
        self.seen.lock().unwrap().push(url.clone());
        let field = |name: &'static str| {
            request.headers().iter().find(|h| h.field.equiv(name)).map(|h| h.value.as_str().to_owned())
        };
        let allowed = self.token.is_none_or(|t| field("Authorization") == Some(format!("Bearer {t}")));
        let range = field("Range");
        if let Some(file) = url.strip_prefix("/cdn/") {
            // Behind a redirect to another host the token is not needed.
            return self.file(request, file, range, &[]);
        }
        if !allowed {
            return request.respond(Response::from_string("no").with_status_code(401)).unwrap();
        }
        if url == "/api/models/org/tiny/revision/main"
            || url == format!("/api/models/org/tiny/revision/{SHA}")
        {
            let siblings: Vec<_> = self.files.iter().map(|(n, _)| json!({"rfilename": n})).collect();
            let info = json!({"id": "org/tiny", "sha": SHA, "siblings": siblings}).to_string();
            return request.respond(Response::from_string(info)).unwrap();
        }
        let prefix = format!("/org/tiny/resolve/{SHA}/");
        let Some(file) = url.strip_prefix(&prefix).filter(|f| self.files.iter().any(|(n, _)| n == f)) else {
            return request.respond(Response::from_string("no").with_status_code(404)).unwrap();
        };
        let tag = format!("\"tag-{file}\"");
        if file.ends_with(".safetensors") {
            let to = format!("{address}/cdn/{file}");
            let answer = Response::empty(302)
                .with_header(header("Location", &to))
                .with_header(header("X-Linked-Etag", &tag))
                .with_header(header("X-Repo-Commit", SHA));
            return request.respond(answer).unwrap();
        }
        self.file(request, file, range, &[header("ETag", &tag), header("X-Repo-Commit", SHA)]);
    }

    fn file(&self, request: Request, name: &str, range: Option<String>, headers: &[Header]) {
        let bytes = &self.files.iter().find(|(n, _)| *n == name).unwrap().1;
        let (from, to) = range
            .and_then(|r| {
                let (a, b) = r.strip_prefix("bytes=")?.split_once('-')?;
                Some((a.parse().ok()?, b.parse::<usize>().map_or(bytes.len(), |b| b + 1)))
            })
            .unwrap_or((0, bytes.len()));
        let cut = self.cut.load(Ordering::Relaxed) && name == "model.safetensors" && to - from > 1;
        let body = bytes[from..if cut { to - 5 } else { to }].to_vec();
        let mut answer = Response::from_data(body)
            .with_status_code(206)
            .with_header(header("Content-Range", &format!("bytes {from}-{}/{}", to - 1, bytes.len())));
        for h in headers {
            answer.add_header(h.clone());
        }
        request.respond(answer).unwrap();
    }
}

pub fn tiny() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"# not needed".to_vec()),
        ("config.json", gpt2().to_string().into_bytes()),
        ("model.safetensors", safetensors(&[("w", "F32", vec![2], f32s(&[1.0, 2.0]))])),
        ("pytorch_model.bin", b"not needed".to_vec()),
        ("tokenizer.json", TOKENIZER.to_vec()),
    ]
}

#[track_caller]
fn refused(result: lacuna::Result<PathBuf>, words: &[&str]) {
    let error = result.expect_err("a model came from nowhere");
    assert!(matches!(error, Error::Hub { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 6);
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{message:?} does not name {word:?}");
    }
}

#[test]
fn model_is_fetched_once_and_then_found_offline() {
    let (fake, home) = (Fake::new(tiny(), None), tempfile::tempdir().unwrap());
    let dir = fake.hub(home.path(), &[]).resolve("org/tiny", false).unwrap();
    assert!(dir.ends_with(format!("hub/models--org--tiny/snapshots/{SHA}")), "{}", dir.display());
    let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    let files = ModelFiles::open(&dir).unwrap();
    assert_eq!(files.name, "org/tiny");
    assert_eq!(files.checkpoint.require("w").unwrap().to_vec::<f32>(), [1.0, 2.0]);

    let asked = fake.state.requests.load(Ordering::Relaxed);
    let again = fake.hub(home.path(), &[]).resolve("org/tiny", false).unwrap();
    let offline = fake.hub(home.path(), &[("HF_HUB_OFFLINE", "1")]).resolve("org/tiny@main", false).unwrap();
    let commit = fake.hub(home.path(), &[("HF_HUB_OFFLINE", "1")]).resolve(&format!("org/tiny@{SHA}"), false);
    assert_eq!((&again, &offline, &commit.unwrap()), (&dir, &dir, &dir));
    assert_eq!(fake.state.requests.load(Ordering::Relaxed), asked, "a cached model needs no network");
}

#[test]
fn sharded_model_is_fetched_by_its_index() {
    let index = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    let mut files = tiny();
    files.retain(|(n, _)| *n != "model.safetensors");
    files.push(("model.safetensors.index.json", index.to_string().into_bytes()));
    files.push(("model-1.safetensors", safetensors(&[("a", "F32", vec![1], f32s(&[1.0]))])));
    files.push(("model-2.safetensors", safetensors(&[("b", "F32", vec![1], f32s(&[2.0]))])));
    let (fake, home) = (Fake::new(files, None), tempfile::tempdir().unwrap());
    let dir = fake.hub(home.path(), &[]).resolve("org/tiny", false).unwrap();
    assert_eq!(ModelFiles::open(&dir).unwrap().checkpoint.len(), 2);
}

#[test]
fn unknown_model_or_revision() {
    let (fake, home) = (Fake::new(tiny(), None), tempfile::tempdir().unwrap());
    let hub = fake.hub(home.path(), &[]);
    refused(hub.resolve("org/other", false), &["org/other", "does not know the model", "spelling"]);
    refused(hub.resolve("org/tiny@v9", false), &["org/tiny@v9", "revision"]);
}

#[test]
fn offline_and_not_in_the_cache() {
    let (fake, home) = (Fake::new(tiny(), None), tempfile::tempdir().unwrap());
    for value in ["1", "true", "YES", "on"] {
        let hub = fake.hub(home.path(), &[("HF_HUB_OFFLINE", value)]);
        refused(hub.resolve("org/tiny", false), &["org/tiny", "not in the cache", "HF_HUB_OFFLINE"]);
    }
    assert_eq!(fake.state.requests.load(Ordering::Relaxed), 0);
    assert!(fake.hub(home.path(), &[("HF_HUB_OFFLINE", "0")]).resolve("org/tiny", false).is_ok());
}

#[test]
fn no_network() {
    let home = tempfile::tempdir().unwrap();
    // A port that was free a moment ago and that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hub = hub(&format!("http://{port}"), home.path(), &[]);
    refused(hub.resolve("org/tiny", false), &["org/tiny", "cannot be reached", "HF_ENDPOINT"]);
}

#[test]
fn private_model_needs_the_token() {
    let (fake, home) = (Fake::new(tiny(), Some("hf_secret")), tempfile::tempdir().unwrap());
    refused(fake.hub(home.path(), &[]).resolve("org/tiny", false), &["HTTP 401", "HF_TOKEN"]);
    let wrong = fake.hub(home.path(), &[("HF_TOKEN", "hf_wrong")]);
    assert!(!format!("{wrong:?}").contains("hf_wrong"), "a token is never printed");
    refused(wrong.resolve("org/tiny", false), &["HTTP 401"]);
    fake.hub(home.path(), &[("HF_TOKEN", "hf_secret\n")]).resolve("org/tiny", false).unwrap();
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("token"), "hf_secret\n").unwrap();
    fake.hub(other.path(), &[]).resolve("org/tiny", false).unwrap();
}

#[test]
fn download_that_ends_early_leaves_no_model_and_can_be_repeated() {
    let (fake, home) = (Fake::new(tiny(), None), tempfile::tempdir().unwrap());
    fake.state.cut.store(true, Ordering::Relaxed);
    let hub = fake.hub(home.path(), &[]);
    refused(hub.resolve("org/tiny", false), &["model.safetensors", "arrived", "try again"]);
    let offline = fake.hub(home.path(), &[("HF_HUB_OFFLINE", "1")]);
    refused(offline.resolve("org/tiny", false), &["not in the cache"]);
    fake.state.cut.store(false, Ordering::Relaxed);
    let dir = hub.resolve("org/tiny", false).unwrap();
    assert_eq!(ModelFiles::open(&dir).unwrap().checkpoint.len(), 1);
}

#[test]
fn unfinished_download_is_continued() {
    let (fake, home) = (Fake::new(tiny(), None), tempfile::tempdir().unwrap());
    let weights = tiny().into_iter().find(|(n, _)| *n == "model.safetensors").unwrap().1;
    let blobs = home.path().join("hub/models--org--tiny/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    for beginning in [weights.len() / 2, weights.len(), weights.len() + 7] {
        let part = blobs.join("tag-model.part");
        let mut content = weights.clone();
        content.resize(beginning, 0);
        std::fs::write(&part, content).unwrap();
        let dir = fake.hub(home.path(), &[]).resolve("org/tiny", false).unwrap();
        let mut got = Vec::new();
        std::fs::File::open(dir.join("model.safetensors")).unwrap().read_to_end(&mut got).unwrap();
        assert!(got == weights, "{beginning} bytes were there");
        std::fs::remove_dir_all(home.path().join("hub/models--org--tiny/refs")).unwrap();
        std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    }
}

#[test]
fn models_without_what_is_needed() {
    for (missing, word) in
        [("config.json", "no config.json"), ("model.safetensors", "neither model.safetensors")]
    {
        let mut files = tiny();
        files.retain(|(n, _)| *n != missing);
        let (fake, home) = (Fake::new(files, None), tempfile::tempdir().unwrap());
        refused(fake.hub(home.path(), &[]).resolve("org/tiny", false), &["org/tiny", word]);
    }
}

#[test]
fn malformed_ids_never_reach_the_network_or_the_disk() {
    let (fake, home) = (Fake::new(tiny(), None), tempfile::tempdir().unwrap());
    let hub = fake.hub(home.path(), &[]);
    for id in ["", "/", "a/b/c", "../x", "a/..", "a b/c", "a/b@", "a/b@../x", "a/b?x=1", ".hidden/x", "a/b#c"]
    {
        refused(hub.resolve(id, false), &["org/name"]);
    }
    assert_eq!(fake.state.requests.load(Ordering::Relaxed), 0);
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn cache_folder_follows_the_environment() {
    let (fake, home, other) =
        (Fake::new(tiny(), None), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = fake.hub(home.path(), &[("HF_HUB_CACHE", other.path().to_str().unwrap())]);
    assert!(dir.resolve("org/tiny", false).unwrap().starts_with(other.path()));
    let seen = fake.state.seen.lock().unwrap();
    assert!(seen.iter().all(|url| !url.contains("README") && !url.contains(".bin")), "{seen:?}");
}
