use super::super::testing::{file, fixture, place};
use super::*;
use crate::error::Error;

fn choice(id: &str, prefix: &str, options: &[&str], suffix: &str, gold: usize) -> Choice {
    let options = options.iter().map(|&o| o.to_owned()).collect();
    Choice { id: id.into(), prefix: prefix.into(), options, suffix: suffix.into(), gold }
}

fn fixtures(name: &str, format: ChoiceFormat, labels: Option<&str>, parity: bool) -> Vec<Choice> {
    let labels = labels.map(fixture);
    read(&fixture(name), format, labels.as_deref(), parity).unwrap()
}

/// What is wrong with a file, and with one of labels.
fn error(format: ChoiceFormat, text: impl AsRef<[u8]>, labels: Option<&[u8]>) -> String {
    let (folder, path) = file("c.jsonl", text);
    let lst = folder.path().join("c.lst");
    std::fs::write(&lst, labels.unwrap_or_default()).unwrap();
    place(&folder, read(&path, format, labels.map(|_| lst.as_path()), false).unwrap_err())
}

#[test]
fn names_of_formats() {
    for format in ChoiceFormat::ALL {
        assert_eq!(format.name().parse(), Ok(format));
        assert_eq!(format.to_string(), format.name());
    }
    assert_eq!(
        "Hella".parse::<ChoiceFormat>().unwrap_err(),
        "expected one of hellaswag, winogrande, siqa, piqa, plain, got \"Hella\""
    );
}

#[test]
fn hellaswag_with_words_apart() {
    let choices = fixtures("hellaswag.jsonl", ChoiceFormat::HellaSwag, None, false);
    assert_eq!(
        choices,
        [
            choice(
                "activitynet~v_made_up_a/24",
                "Paddling a canoe: Two people carry a canoe to a lake. A woman in New York",
                &[
                    " pushes it off the shore.",
                    " folds it into a bag.",
                    " paints the lake red.",
                    " sings to the paddle.",
                ],
                "",
                0
            ),
            choice(
                "wikihow~77/24",
                "Home and Garden: How to clean a lamp. Unplug the lamp. Let it cool for ten minutes.",
                &[
                    " This keeps you safe. Use a dry cloth.",
                    " Pour water on the plug.",
                    " Paint the bulb. Then wait.",
                    " Bake it at low heat.",
                ],
                "",
                2
            ),
            choice(
                "31",
                "Baking bread: The dough rests in a bowl.",
                &[" it rises.", " it flies.", " it reads.", " it swims."],
                "",
                1
            ),
        ]
    );
}

#[test]
fn hellaswag_as_the_published_evaluator_has_it() {
    let choices = fixtures("hellaswag.jsonl", ChoiceFormat::HellaSwag, None, true);
    assert_eq!(choices.len(), 3);
    let prefix = "Paddling a canoe: Two people carry a canoe to a lake. A woman in new york";
    assert_eq!(choices[0].prefix, prefix);
    assert_eq!(choices[0].options[1..3], ["folds it into a bag.", "paints the lake red."]);
    // Spaces around the brackets stay.
    assert_eq!(
        choices[1],
        choice(
            "wikihow~77/24",
            "Home and Garden: How to clean a lamp. Unplug the lamp. Let it cool for ten minutes. ",
            &[
                "This keeps you safe. Use a dry cloth.",
                " Pour water on the plug.",
                "Paint the bulb. Then wait. ",
                "Bake it at low heat.",
            ],
            "",
            2
        )
    );
    assert_eq!(choices[2].prefix, "Baking bread: The dough rests in a bowl.");
}

#[test]
fn brackets_and_spaces() {
    assert_eq!(without_brackets("a [b] c [d [e] f] g"), "a  c  f] g");
    assert_eq!(without_brackets("] a [b\nc] [d] [e"), "] a [b\nc]  [e");
    assert_eq!(without_brackets("[][]"), "");
    assert_eq!(without_brackets(&"[".repeat(1 << 20)).len(), 1 << 20);
    assert_eq!(tidy("\u{1f} [header] a [title] b.   c [step] d\u{a0}"), " a. b.  c d");
    assert_eq!(capitalised("", true), "");
    assert_eq!(capitalised("the BBC", true), "The bbc");
    assert_eq!(capitalised("the BBC", false), "The BBC");
    assert_eq!(capitalised("éa", false), "Éa");
}

#[test]
fn winogrande_with_words_apart() {
    let choices = fixtures("winogrande.jsonl", ChoiceFormat::Winogrande, None, false);
    assert_eq!(
        choices,
        [
            choice(
                "MADEUP-1",
                "Nora could not lift the crate onto the shelf because the",
                &[" crate", " shelf"],
                " was too heavy.",
                0
            ),
            choice(
                "MADEUP-2",
                "Nora could not lift the crate onto the shelf because the",
                &[" crate", " shelf"],
                " was too high.",
                1
            ),
            choice("3", "", &["Emil", "Otto"], " thanked Otto for the soup Emil had asked for.", 0),
        ]
    );
}

#[test]
fn winogrande_as_the_published_evaluator_has_it() {
    let choices = fixtures("winogrande.jsonl", ChoiceFormat::Winogrande, None, true);
    assert_eq!(
        choices[0],
        choice(
            "MADEUP-1",
            "Nora could not lift the crate onto the shelf because the ",
            &["crate", "shelf"],
            "was too heavy.",
            0
        )
    );
    assert_eq!(
        choices[2],
        choice("3", "", &["Emil", "Otto"], "thanked Otto for the soup Emil had asked for.", 0)
    );
}

#[test]
fn gaps_are_counted() {
    let line = |sentence: &str| {
        format!("{{\"sentence\": \"{sentence}\", \"option1\": \"x\", \"option2\": \"y\", \"answer\": 2}}")
    };
    let (_folder, path) = file("w.jsonl", line("a (_) b _ c "));
    let read = |parity| read(&path, ChoiceFormat::Winogrande, None, parity);
    assert_eq!(read(true).unwrap(), [choice("1", "a (", &["x", "y"], ") b _ c", 1)]);
    assert!(read(false).unwrap_err().to_string().ends_with("exactly one `_`, got \"a (_) b _ c \""));
    let (_folder, path) = file("w.jsonl", line("a (_) b "));
    let read = super::read(&path, ChoiceFormat::Winogrande, None, false);
    assert_eq!(read.unwrap(), [choice("1", "a (", &["x", "y"], ") b ", 1)]);
    assert_eq!(
        error(ChoiceFormat::Winogrande, line("no gap"), None),
        "c.jsonl line 1: `sentence`: expected exactly one `_`, got \"no gap\""
    );
}

#[test]
fn siqa_with_a_file_of_labels() {
    let labels = Some("siqa-labels.lst");
    let choices = fixtures("siqa.jsonl", ChoiceFormat::Siqa, labels, false);
    assert_eq!(
        choices,
        [
            choice(
                "1",
                "Question: Ilse lent Tom her umbrella and walked home in the rain. Why did Ilse do this?\nAnswer:",
                &[" to help Tom", " to get wet", " to sell it"],
                "",
                0
            ),
            choice(
                "2",
                "Question: Karl forgot the name of his new neighbour. What will Karl want to do next?\nAnswer:",
                &[" move away", " ask again", " shout"],
                "",
                1
            ),
            choice(
                "3",
                "Question: Rosa won the race after months of training. How would Rosa feel afterwards?\nAnswer:",
                &[" bored", " afraid", " proud"],
                "",
                2
            ),
        ]
    );
    let parity = fixtures("siqa.jsonl", ChoiceFormat::Siqa, labels, true);
    assert_eq!(
        parity[1],
        choice(
            "2",
            "Question: Karl forgot the name of his new neighbour. What will Karl want to do next?\nAnswer: ",
            &["move away", "ask again", "shout"],
            "",
            1
        )
    );
}

#[test]
fn siqa_labels_in_the_line() {
    let line = |label: &str| {
        let rest = "\"context\": \"c\", \"question\": \"q\", \"answerA\": \"a\", \"answerB\": \"b\", \"answerC\": \"c\"";
        format!("{{{rest}, {label}}}")
    };
    let gold = |label: &str| {
        let (_folder, path) = file("s.jsonl", line(label));
        read(&path, ChoiceFormat::Siqa, None, false).unwrap()[0].gold
    };
    assert_eq!(gold("\"label\": \"3\\n\""), 2);
    assert_eq!(gold("\"label\": 1"), 0);
    assert_eq!(gold("\"correct\": \"B\""), 1);
    for wrong in ["0", "4", "-1", "1.5", "\"D\"", "\"\"", "true"] {
        assert_eq!(
            error(ChoiceFormat::Siqa, line(&format!("\"label\": {wrong}")), None),
            format!("c.jsonl line 1: `label`: expected a label from 1 to 3 (or A to C), got {wrong}")
        );
    }
    assert_eq!(
        error(ChoiceFormat::Siqa, line("\"id\": 4"), None),
        "c.jsonl line 1: `label` or `correct`: expected a label from 1 to 3 (or A to C), or a file of labels, got no such \
         field; others are: context, question, answerA, answerB, answerC, id"
    );
}

#[test]
fn piqa_has_a_space_before_the_answer_in_both_ways() {
    let labels = Some("piqa-labels.lst");
    let choices = fixtures("piqa.jsonl", ChoiceFormat::Piqa, labels, false);
    assert_eq!(
        choices,
        [
            choice(
                "1",
                "Question: How do I keep a door from slamming?\nAnswer:",
                &[" Put a wedge of wood under it.", " Put a wedge of butter under it."],
                "",
                0
            ),
            choice(
                "2",
                "Question: dry wet shoes\nAnswer:",
                &[" Fill them with water.", " Fill them with paper."],
                "",
                1
            ),
            choice("3", "Question: spoon\nAnswer:", &[" can stir soup ", " can stir stone "], "", 0),
        ]
    );
    let parity = fixtures("piqa.jsonl", ChoiceFormat::Piqa, labels, true);
    assert_eq!(
        parity[1],
        choice(
            "2",
            "Question: dry wet shoes\nAnswer: ",
            &[" Fill them with water.", " Fill them with paper."],
            "",
            1
        )
    );
}

#[test]
fn plain_lines() {
    let expected = [
        choice("greeting", "Good", &[" morning", " wood", " seven"], ", said the baker.", 0),
        choice("2", "Two and two are", &[" five", " four"], "", 1),
        choice("7", "", &["Yes.", "No."], "", 1),
    ];
    for parity in [false, true] {
        assert_eq!(fixtures("choices.jsonl", ChoiceFormat::Plain, None, parity), expected);
    }
}

const PIQA: &str = "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\"}\n{\"goal\": \"h\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": 1}\n";

#[test]
fn files_of_labels() {
    let error = |labels: &[u8]| error(ChoiceFormat::Piqa, PIQA, Some(labels));
    assert_eq!(error(b"0\n"), "c.lst: labels: expected 2, one for each item of c.jsonl, got 1");
    assert_eq!(error(b"0\n1\n1\n"), "c.lst: labels: expected 2, one for each item of c.jsonl, got 3");
    assert_eq!(error(b"2\n1\n"), "c.lst line 1: label: expected a label from 0 to 1, got \"2\"");
    assert_eq!(error(b"0\n\n1"), "c.lst line 2: label: expected a label from 0 to 1, got \"\"");
    assert_eq!(error(b"1\n0\n"), "c.lst line 2: label: expected 1, as in c.jsonl line 2, got \"0\"");
    assert_eq!(error(b"0\n\xff\n"), "c.lst line 2: the line: expected UTF-8, got other bytes");
    assert_eq!(error(b""), "c.lst: labels: expected 2, one for each item of c.jsonl, got 0");
    let (folder, path) = file("p.jsonl", PIQA);
    let lst = folder.path().join("p.lst");
    std::fs::write(&lst, "\u{feff}1\r\n1 \r\n\r\n").unwrap();
    let choices = read(&path, ChoiceFormat::Piqa, Some(&lst), false).unwrap();
    assert_eq!(choices.iter().map(|c| c.gold).collect::<Vec<_>>(), [1, 1]);
    let missing = read(&path, ChoiceFormat::Piqa, Some(Path::new("not/there.lst")), false);
    assert!(matches!(missing, Err(Error::Io { .. })));
}

#[test]
fn blank_labels_of_test_sets_need_a_file() {
    let line = "{\"sentence\": \"a _ b\", \"option1\": \"x\", \"option2\": \"y\", \"answer\": \"\"}";
    assert_eq!(
        error(ChoiceFormat::Winogrande, line, None),
        "c.jsonl line 1: `answer`: expected a label from 1 to 2, got \"\""
    );
    let gold = |format, line, label| {
        let (folder, path) = file("w.jsonl", line);
        let lst = folder.path().join("w.lst");
        std::fs::write(&lst, label).unwrap();
        read(&path, format, Some(&lst), false).unwrap()[0].gold
    };
    assert_eq!(gold(ChoiceFormat::Winogrande, line, "2\n"), 1);
    assert_eq!(
        gold(ChoiceFormat::Piqa, "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": -1}", "1"),
        1
    );
}

#[test]
fn what_is_wrong_is_named() {
    let plain = |text: &str| error(ChoiceFormat::Plain, text, None);
    assert_eq!(
        plain("{\"prefix\": \"a\", \"choices\": [\"b\"], \"answer\": 0}"),
        "c.jsonl line 1: `choices`: expected two texts or more, got 1"
    );
    assert_eq!(
        plain("{\"prefix\": \"a\", \"choices\": [\"b\", \" \"], \"answer\": 0}"),
        "c.jsonl line 1: `choices[1]`: expected a text, got \" \""
    );
    assert_eq!(
        plain("\n{\"prompt\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 2}"),
        "c.jsonl line 2: `answer`: expected a label from 0 to 1, got 2"
    );
    assert_eq!(
        plain("{\"prefix\": \"a\", \"options\": [\"b\", \"c\"], \"answer\": 0}"),
        "c.jsonl line 1: `choices`: expected a list of strings, got no such field; others are: prefix, options, answer"
    );
    assert_eq!(
        plain("\n\n"),
        "no items in c.jsonl: expected lines such as {\"prefix\": \"...\", \"choices\": [\"...\", \"...\"], \"answer\": 0}"
    );
    let twice = "{\"id\": \"x\", \"prefix\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0}\n".repeat(2);
    assert_eq!(
        plain(&twice),
        "c.jsonl line 2: the item's id: expected one that no other item has, got \"x\", as item 1 of the file"
    );
    assert!(
        plain("{\"prefix\": \"a\",").starts_with("c.jsonl line 1: the line: expected a JSON object, got EOF")
    );
    assert_eq!(
        error(ChoiceFormat::Plain, b"{\"prefix\": \"\xff\"}", None),
        "c.jsonl line 1: byte 13 of the line: expected UTF-8, got 0xff"
    );
    let hellaswag = |endings: &str| {
        let line =
            format!("{{\"activity_label\": \"a\", \"ctx_a\": \"b\", \"endings\": {endings}, \"label\": 0}}");
        error(ChoiceFormat::HellaSwag, line, None)
    };
    assert_eq!(hellaswag("[\"x\", \"y\"]"), "c.jsonl line 1: `endings`: expected 4 texts, got 2");
    assert_eq!(
        hellaswag("[\"x\", \"[step]\", \"y\", \"z\"]"),
        "c.jsonl line 1: `endings[1]`: expected a text, got \"\""
    );
    assert_eq!(
        error(ChoiceFormat::Piqa, "{\"goal\": \"g\", \"sol1\": \"a\", \"solution2\": \"b\"}", None),
        "c.jsonl line 1: `sol2`: expected a string, got no such field; others are: goal, sol1, solution2"
    );
    let (folder, path) = file("c.csv", "");
    assert_eq!(
        place(&folder, read(&path, ChoiceFormat::Plain, None, false).unwrap_err()),
        "c.csv: kind of file: expected .jsonl (also .jsonl.gz or .jsonl.zst), got \"c.csv\""
    );
}
