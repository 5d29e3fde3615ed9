//! Text to ids and back.

use lacuna::Error;
use lacuna::io::Tokenizer;
use proptest::prelude::*;
use serde_json::json;

use super::support::{TOKENIZER, write};

fn bundled() -> Tokenizer {
    Tokenizer::from_bytes(TOKENIZER).unwrap()
}

#[test]
fn text_survives_the_way_there_and_back() {
    let t = bundled();
    for text in
        ["", "To be, or not to be:\nthat is the question.", "  two  spaces ", "naïve — 日本 🎭\t\u{0}"]
    {
        let ids = t.encode(text).unwrap();
        assert_eq!(t.decode(&ids).unwrap(), text);
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| t.piece_bytes(id)).collect();
        assert_eq!(bytes, text.as_bytes(), "joined pieces are the text");
        assert!(ids.iter().all(|&id| (id as usize) < t.vocab_size()));
    }
}

#[test]
fn pieces_show_spaces_newlines_and_specials() {
    let t = bundled();
    let ids = t.encode("the king\n").unwrap();
    let pieces: Vec<String> = ids.iter().map(|&id| t.piece(id)).collect();
    assert_eq!(pieces.concat(), "the king\n");
    assert!(pieces.iter().any(|p| p.starts_with(' ')), "{pieces:?}");
    assert_eq!((t.piece(0), t.piece(1)), ("<mask>".into(), "<eos>".into()));
    assert_eq!(t.piece(999_999), "\u{fffd}");
}

#[test]
fn parts_of_a_character_are_marked() {
    let t = bundled();
    let ids = t.encode("🎭").unwrap();
    assert!(ids.len() > 1);
    assert!(ids.iter().all(|&id| t.piece(id).contains('\u{fffd}')));
    assert_eq!(t.decode(&ids).unwrap(), "🎭");
}

#[test]
fn special_tokens_are_read_skipped_and_known() {
    let t = bundled();
    assert_eq!(t.encode("<mask>").unwrap(), [0]);
    assert_eq!(t.decode(&[0, 1, t.token_id("a").unwrap(), 70_000]).unwrap(), "a");
    assert!(t.is_special(0) && !t.is_special(2));
    assert_eq!((t.token_id("<eos>"), t.token_id("no such token"), t.vocab_size()), (Some(1), None, 1024));
}

/// A SentencePiece-like tokenizer as LLaMA's fast tokenizer is saved.
fn marked() -> Tokenizer {
    let words = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xE2>", "\u{2581}", "a", "b", "\u{2581}a", "ab"];
    let vocab: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(i, w)| ((*w).to_owned(), json!(i))).collect();
    let special: Vec<_> = (0..3)
        .map(|id| {
            json!({"id": id, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": ["\u{2581} a", "a b"]}
    });
    Tokenizer::from_bytes(tokenizer.to_string().as_bytes()).unwrap()
}

#[test]
fn sentencepiece_style() {
    let t = marked();
    let ids = t.encode("a ab\n").unwrap();
    // No bos is added, and the truncation to 2 tokens that the file asks for is not done.
    assert_eq!(ids, [8, 8, 7, 3]);
    assert_eq!(t.decode(&ids).unwrap(), "a ab\n");
    let pieces: Vec<String> = [8, 5, 3, 4, 1].iter().map(|&id| t.piece(id)).collect();
    assert_eq!(pieces, [" a", " ", "\n", "\u{fffd}", "<s>"]);
    assert_eq!(t.piece_bytes(4), [0xe2]);
}

#[test]
fn gpt2_original_files() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "vocab.json",
        json!({"a": 0, "b": 1, "\u{120}": 2, "ab": 3, "<|endoftext|>": 4}).to_string(),
    );
    write(dir.path(), "merges.txt", "#version: 0.2\na b\n");
    let t =
        Tokenizer::from_gpt2_files(&dir.path().join("vocab.json"), &dir.path().join("merges.txt")).unwrap();
    assert_eq!(t.encode("ab a<|endoftext|>").unwrap(), [3, 2, 0, 4]);
    assert_eq!(t.decode(&[3, 2, 0, 4]).unwrap(), "ab a");
    assert_eq!(t.piece(2), " ");
}

#[test]
fn malformed_tokenizers_are_typed_errors() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "tokenizer.json", "{\"version\": \"1.0\"");
    let error = Tokenizer::from_file(&dir.path().join("tokenizer.json")).unwrap_err();
    assert!(matches!(error, Error::Tokenizer(_)), "{error:?}");
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    for text in ["", "[]", "{}", "null", &TOKENIZER.escape_ascii().to_string()] {
        assert!(matches!(Tokenizer::from_bytes(text.as_bytes()), Err(Error::Tokenizer(_))));
    }
    let text = std::str::from_utf8(TOKENIZER).unwrap();
    assert!(text.contains("\"decoder\": {"));
    let absurd = text.replace("\"decoder\": {", "\"decoder\": {\"x\": 1e999,");
    assert!(matches!(Tokenizer::from_bytes(absurd.as_bytes()), Err(Error::Tokenizer(_))));
    let gone = Tokenizer::from_file(&dir.path().join("gone.json")).unwrap_err();
    assert!(matches!(gone, Error::Io { .. }) && gone.to_string().contains("gone.json"), "{gone}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_tokenizers_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        front in any::<bool>(),
    ) {
        let mut bytes = TOKENIZER.to_vec();
        // The first 1,500 bytes hold the settings, the rest is words.
        let range = if front { 1500 } else { bytes.len() };
        for (at, value) in edits {
            bytes[at.index(range)] = value;
        }
        if let Ok(t) = Tokenizer::from_bytes(&bytes) {
            let ids = t.encode("To be, <mask> or — not\n").unwrap_or_default();
            let _ = t.decode(&ids);
            let _ = ids.iter().chain(&[0, u32::MAX]).map(|&id| t.piece(id)).collect::<String>();
        }
    }
}
