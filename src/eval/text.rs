//! How answers and samples of text are judged: answers to questions in words (normalised as for SQuAD), summaries
//! (ROUGE), final answers to sums in words (GSM8K), and how varied samples are.

use std::collections::{HashMap, HashSet};

use rougers::{RougeType, Tokenizer};

use crate::error::{Error, Result};

/// An answer without what does not matter: in lower case, without ASCII punctuation, without the articles a, an and
/// the as whole words, with one space between words. The steps are those of the evaluation of SQuAD (Rajpurkar et
/// al., 2016), in its order.
pub fn normalize_answer(text: &str) -> String {
    let kept: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let mut bare = String::with_capacity(kept.len());
    let mut rest = kept.as_str();
    while let Some(first) = rest.chars().next() {
        let inside = in_word(first);
        let (run, after) = rest.split_at(rest.find(|c| in_word(c) != inside).unwrap_or(rest.len()));
        bare.push_str(if matches!(run, "a" | "an" | "the") { " " } else { run });
        rest = after;
    }
    words(&bare).collect::<Vec<_>>().join(" ")
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// Whether a character is of a word, for the word boundaries of Python's regular expressions: a letter, a digit or
/// an underscore of any script. Marks that Unicode calls alphabetic (vowel signs) are of a word here, not in Python.
fn in_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// White space as Python has it: Unicode's, and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Whether one of `answers` is part of `prediction`, all normalised ([`normalize_answer`]). An answer of which
/// nothing is left is part of none.
pub fn contains_answer(prediction: &str, answers: &[String]) -> bool {
    let prediction = normalize_answer(prediction);
    answers.iter().map(|answer| normalize_answer(answer)).any(|a| !a.is_empty() && prediction.contains(&a))
}

/// Whether `prediction` is one of `answers`, all normalised ([`normalize_answer`]).
pub fn exact_match(prediction: &str, answers: &[String]) -> bool {
    let prediction = normalize_answer(prediction);
    answers.iter().any(|answer| normalize_answer(answer) == prediction)
}

/// The harmonic mean of precision and recall of the words of `prediction`, each as often as it occurs, without
/// regard to their order, both normalised ([`normalize_answer`]); 0 where no word is common, as in SQuAD 1.1.
pub fn f1(prediction: &str, answer: &str) -> f64 {
    let (prediction, answer) = (normalize_answer(prediction), normalize_answer(answer));
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in words(&answer) {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in words(&prediction) {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    // 2 p r / (p + r) of p = common / a and r = common / b.
    let all = words(&prediction).count() + words(&answer).count();
    if common == 0 { 0.0 } else { f64::from(common) * 2.0 / all as f64 }
}

/// The greatest [`f1`] over `answers`; 0 where there are none.
pub fn best_f1(prediction: &str, answers: &[String]) -> f64 {
    answers.iter().map(|answer| f1(prediction, answer)).fold(0.0, f64::max)
}

/// How much of a reference a text has (Lin, "ROUGE: a package for automatic evaluation of summaries", 2004), each
/// as the harmonic mean of precision and recall, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rouge {
    /// Of words.
    pub one: f64,
    /// Of pairs of words.
    pub two: f64,
    /// Of the longest common subsequence of words.
    pub l: f64,
}

/// Gives scores as the Python package rouge-score does.
#[derive(Clone, Debug)]
pub struct RougeScorer {
    inner: rougers::RougeScorer,
}

impl RougeScorer {
    /// With `stem`, words are compared without endings (Porter's stemmer).
    ///
    /// # Errors
    /// [`Error::Request`] should the library refuse these kinds of ROUGE.
    pub fn new(stem: bool) -> Result<Self> {
        let kinds = vec![RougeType::N(1), RougeType::N(2), RougeType::L];
        let inner = rougers::RougeScorer::with_tokenizer(kinds, Tokenizer::new(stem));
        Ok(Self { inner: inner.map_err(Error::request)? })
    }

    /// The scores of `prediction`; 0 where either text has no words of ASCII letters and digits.
    pub fn score(&self, prediction: &str, reference: &str) -> Rouge {
        let scores = self.inner.score(reference, prediction);
        let of = |kind| scores.get(kind).map_or(0.0, |score| score.fmeasure);
        Rouge { one: of(RougeType::N(1)), two: of(RougeType::N(2)), l: of(RougeType::L) }
    }
}

/// What stands before the answer in the solutions of GSM8K (Cobbe et al., 2021).
const MARK: &str = "####";

/// The first number behind the last `####`, on its line, as [`last_number`] reads numbers, `$` left out. Where no number
/// is there, what is: trimmed, without `$`, commas and full stops at the end. `None` where there is no mark, or nothing
/// behind it.
pub fn final_answer(text: &str) -> Option<String> {
    let (_, behind) = text.rsplit_once(MARK)?;
    let line = behind.lines().next()?.replace('$', "");
    if let Some(place) = number_from(&line, 0) {
        return Some(signed(&line, place));
    }
    let line = line.replace(',', "");
    let answer = line.trim_matches(is_space).trim_end_matches('.').trim_end_matches(is_space);
    (!answer.is_empty()).then(|| answer.to_owned())
}

/// The last number of a text, without commas, for answers that are not marked: digits, with commas between them, a
/// decimal point and digits behind it, and a sign directly before them. A sign behind a letter, a digit or a closing
/// bracket is a hyphen or an operator, not part of the number.
pub fn last_number(text: &str) -> Option<String> {
    let places = std::iter::successors(number_from(text, 0), |&(_, end)| number_from(text, end));
    places.last().map(|place| signed(text, place))
}

/// Where the first number that begins at byte `at` or behind it is, without its sign.
fn number_from(text: &str, mut at: usize) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let is = |at: usize, byte: u8| bytes.get(at) == Some(&byte);
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    // A number may begin with the point, unless the point ends something.
    let ended = |at: usize| text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '.');
    let begins = |at: usize| digit(at) || (is(at, b'.') && digit(at + 1) && !ended(at));
    while !begins(at) {
        if at >= bytes.len() {
            return None;
        }
        at += 1;
    }
    let start = at;
    while digit(at) || (is(at, b',') && digit(at + 1)) {
        at += 1;
    }
    if is(at, b'.') && digit(at + 1) {
        at += 1 + (at + 1..bytes.len()).take_while(|&at| digit(at)).count();
    }
    Some((start, at))
}

/// The number at a place, with its sign and without commas.
fn signed(text: &str, (start, end): (usize, usize)) -> String {
    let negative = text[..start]
        .strip_suffix(['-', '\u{2212}'])
        .is_some_and(|rest| !rest.ends_with(|c: char| c.is_alphanumeric() || matches!(c, ')' | ']')));
    format!("{}{}", if negative { "-" } else { "" }, text[start..end].replace(',', ""))
}

/// A number of digits as its sign, its whole part and its fraction, without zeros that change nothing.
fn decimal(text: &str) -> Option<(bool, String, String)> {
    let text = text.trim_matches(is_space);
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text).replace(',', "");
    let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
    let mut all = whole.bytes().chain(fraction.bytes()).peekable();
    all.peek()?;
    if !all.all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let negative = text.starts_with('-') && !(whole.is_empty() && fraction.is_empty());
    Some((negative, whole.to_owned(), fraction.to_owned()))
}

/// Whether two answers are the same: as decimal numbers, exactly and whatever their commas, where both are numbers,
/// else as trimmed text.
pub fn same_answer(a: &str, b: &str) -> bool {
    match (decimal(a), decimal(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a.trim_matches(is_space) == b.trim_matches(is_space),
    }
}

/// The answer as the published evaluation of DiffuLLaMA (Gong et al., 2024) on GSM8K takes it: what is behind the
/// last `####`, or all where there is none, trimmed, without commas. It is compared as text.
pub fn parity_answer(text: &str) -> String {
    // From the left, as marks that overlap ("#####") are told apart there.
    text.split(MARK).last().unwrap_or(text).trim_matches(is_space).replace(',', "")
}

/// The most frequent of the answers that are there, equal by `same`, in the form that came first; of equally frequent
/// ones the one that came first.
pub fn majority(answers: &[Option<String>], same: impl Fn(&str, &str) -> bool) -> Option<&str> {
    let mut groups: Vec<(&str, usize)> = Vec::new();
    for answer in answers.iter().flatten() {
        match groups.iter_mut().find(|(first, _)| same(first, answer)) {
            Some((_, count)) => *count += 1,
            None => groups.push((answer, 1)),
        }
    }
    let most = groups.iter().map(|(_, count)| *count).max()?;
    groups.into_iter().find(|(_, count)| *count == most).map(|(answer, _)| answer)
}

/// The probability that at least one of `k` answers is right, drawn without replacement from `samples` of which
/// `right` are: an unbiased estimate, the pass@k of Chen et al., "Evaluating large language models trained on code"
/// (2021), section 2.1, as a product of ratios that cannot overflow. A `k` above `samples` is taken as `samples`.
pub fn hit_at_k(samples: usize, right: usize, k: usize) -> f64 {
    let (right, k) = (right.min(samples), k.min(samples));
    if right > samples - k {
        return 1.0;
    }
    let miss: f64 = (samples - right + 1..=samples).map(|i| 1.0 - k as f64 / i as f64).product();
    1.0 - miss
}

/// The entropy of the distribution of `tokens` over the vocabulary, in nats; 0 for none.
pub fn entropy(tokens: &[u32]) -> f64 {
    if tokens.is_empty() {
        return 0.0;
    }
    let mut sorted = tokens.to_vec();
    sorted.sort_unstable();
    let all = tokens.len() as f64;
    let of = |count: f64| count / all * (all / count).ln();
    sorted.chunk_by(|a, b| a == b).map(|same| of(same.len() as f64)).sum()
}

/// The number of different n-grams of all `samples` over the number of their n-grams (Li et al., "A
/// diversity-promoting objective function for neural conversation models", 2016, distinct-n); 0 where there are none.
pub fn distinct(samples: &[Vec<u32>], n: usize) -> f64 {
    if n == 0 {
        return 0.0;
    }
    let grams = || samples.iter().flat_map(|sample| sample.windows(n));
    match grams().count() {
        0 => 0.0,
        all => grams().collect::<HashSet<_>>().len() as f64 / all as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(answers: &[&str]) -> Vec<String> {
        answers.iter().map(|&answer| answer.to_owned()).collect()
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-12, "got {got}, expected {expected}");
    }

    #[test]
    fn normalised_answers() {
        for (text, expected) in [
            ("The  Eiffel\tTower!", "eiffel tower"),
            ("an apple, a day", "apple day"),
            ("Theatre and banana", "theatre and banana"),
            // Punctuation goes first: what it joins is one word, what it parted from an article is not one.
            ("the-best a.b. A/C", "thebest ab ac"),
            ("don't \"the\"", "dont"),
            ("the_end", "theend"),
            // Boundaries are those of any script, as in Python; curly quotes and dashes are no ASCII punctuation.
            ("thé aé éa a\u{2019}b a\u{2014}the", "thé aé éa \u{2019}b \u{2014}"),
            ("ÉCOLE\u{a0}ΟΔΟΣ\u{1f}x", "école οδος x"),
            ("a", ""),
            (" . ", ""),
            ("", ""),
        ] {
            assert_eq!(normalize_answer(text), expected, "{text:?}");
        }
    }

    #[test]
    fn answers_in_predictions() {
        let answers = owned(&["The Beatles", "!"]);
        assert!(contains_answer("I think: beatles, surely.", &answers));
        assert!(contains_answer("beatlesque the Beatlesque", &answers), "parts of words count");
        assert!(!contains_answer("the Stones!", &answers) && !contains_answer("", &answers));
        assert!(!contains_answer("anything", &[]));
        assert!(exact_match("the beatles.", &answers) && !exact_match("beatles, surely", &answers));
        assert!(!exact_match("", &owned(&["x"])) && !exact_match("x", &[]));
    }

    #[test]
    fn bags_of_words() {
        // "cat sat on mat" and "cat cat mat": 2 common (cat once, mat), precision 2 / 4, recall 2 / 3, so
        // 2 * 1/2 * 2/3 / (1/2 + 2/3) = 4 / 7.
        close(f1("The cat sat on the mat.", "cat, cat, mat"), 4.0 / 7.0);
        assert_eq!(f1("b c", "c b"), 1.0);
        assert_eq!([("b", "c"), ("", "c"), ("b", ""), ("", "the")].map(|(a, b)| f1(a, b)), [0.0; 4]);
        close(best_f1("b c", &owned(&["d", "b", "b c d"])), 2.0 * 2.0 / 5.0);
        assert_eq!(best_f1("b", &[]), 0.0);
    }

    #[test]
    fn rouge_by_hand() {
        // Words b c d e and b d c f g: 3 common of 4 and 5, 2 * 3 / 9; pairs bc cd de and bd dc cf fg: none; the
        // longest common subsequence b c or b d, 2 * 2 / 9.
        let scorer = RougeScorer::new(false).unwrap();
        let got = scorer.score("B c, d e", "b d c f g");
        close(got.one, 6.0 / 9.0);
        close(got.l, 4.0 / 9.0);
        assert_eq!(got.two, 0.0);
        // One pair of three and of two in common: 2 * 1 / 5.
        close(scorer.score("b c d e", "x c d").two, 2.0 / 5.0);
        assert_eq!(scorer.score("running dogs", "runs dog"), Rouge::default());
        let stems = RougeScorer::new(true).unwrap().score("running dogs", "runs dogs");
        assert_eq!(stems, Rouge { one: 1.0, two: 1.0, l: 1.0 });
        assert_eq!(scorer.score("", "b"), Rouge::default());
    }

    #[test]
    fn final_answers() {
        for (text, expected) in [
            ("#### 18", "18"),
            ("a #### 1\nb\n####  $1,234.50. \nmore 7", "1234.50"),
            ("####-$5", "-5"),
            ("####18 apples.\r\n", "18"),
            ("#### 18%", "18"),
            ("#### $18/hour", "18"),
            ("#### about -1,234.5 or 7", "-1234.5"),
            ("#### 3 of 4, (2)-5\n6", "3"),
            ("#### Tuesday, at noon. ", "Tuesday at noon"),
        ] {
            assert_eq!(final_answer(text).as_deref(), Some(expected), "{text:?}");
        }
        for text in ["", "18", "### 18", "####", "#### 18 ####", "####\n18", "#### $ , ."] {
            assert_eq!(final_answer(text), None, "{text:?}");
        }
        let parity = ["x #### 1,234. \n", " 5 ", "#### 1 #### 2\n3", "", "##### 7"].map(parity_answer);
        assert_eq!(parity, ["1234.", "5", "2\n3", "", "# 7"]);
    }

    #[test]
    fn last_numbers() {
        for (text, expected) in [
            ("so 3 + 4 = 7 apples.", "7"),
            ("costs $1,234.50.", "1234.50"),
            ("it is -3, or x=-4", "-4"),
            ("1, 2, 3,", "3"),
            ("é.5 or .5", ".5"),
        ] {
            assert_eq!(last_number(text).as_deref(), Some(expected), "{text:?}");
        }
        let texts = ["10-3", "(2)-3", "covid-19", "\u{2212}5", "+6", "v1.2.3", "5é", "é.5"];
        let numbers = texts.map(|text| last_number(text).unwrap());
        assert_eq!(numbers, ["3", "3", "19", "-5", "6", "3", "5", "5"]);
        assert_eq!((last_number(""), last_number("none, - . \u{2212}")), (None, None));
    }

    #[test]
    fn the_same_answer() {
        let same = [("18", " 18.0"), ("18.", "018.00"), ("1,000", "1000"), ("-0", "0"), (".5", "+0.50")];
        assert!(same.iter().all(|(a, b)| same_answer(a, b) && same_answer(b, a)));
        let large = ("9007199254740993", "9007199254740992");
        let other = [("18", "-18"), ("18", "18 apples"), ("1", "10"), ("", "0"), ("1.2.3", "1.2"), large];
        assert!(!other.iter().any(|(a, b)| same_answer(a, b) || same_answer(b, a)));
        assert!(same_answer("", " ") && same_answer("nan", "nan"));
    }

    #[test]
    fn votes() {
        let votes = |answers: &[Option<&str>]| -> Option<String> {
            let answers: Vec<_> = answers.iter().map(|a| a.map(str::to_owned)).collect();
            majority(&answers, same_answer).map(str::to_owned)
        };
        assert_eq!(votes(&[Some("2"), Some("18.0"), None, Some("18"), None, None]).as_deref(), Some("18.0"));
        assert_eq!(votes(&[Some("b"), Some("a"), Some("a"), Some("b")]).as_deref(), Some("b"), "a tie");
        assert_eq!((votes(&[]), votes(&[None, None])), (None, None));
        let as_text = ["18.0", "18", "18.00", "18"].map(|answer| Some(answer.to_owned()));
        assert_eq!(majority(&as_text, |a, b| a == b), Some("18"));
    }

    #[test]
    fn hits() {
        // 1 - C(3, 2) / C(5, 2) = 1 - 3 / 10.
        close(hit_at_k(5, 2, 2), 0.7);
        close(hit_at_k(10, 3, 1), 0.3);
        // 1 - C(999, 10) / C(1000, 10) = 10 / 1000.
        close(hit_at_k(1000, 1, 10), 0.01);
        assert_eq!((hit_at_k(5, 0, 5), hit_at_k(5, 1, 5)), (0.0, 1.0));
        assert_eq!((hit_at_k(5, 1, 9), hit_at_k(5, 4, 2)), (1.0, 1.0));
        assert_eq!((hit_at_k(0, 0, 3), hit_at_k(5, 2, 0), hit_at_k(3, 9, 1)), (0.0, 0.0, 1.0));
    }

    #[test]
    fn variety() {
        // Shares 1/2, 1/4, 1/4: ln 2 / 2 + 2 ln 4 / 4 = 1.5 ln 2.
        close(entropy(&[7, 1, 7, 3]), 1.5 * 2.0_f64.ln());
        assert_eq!((entropy(&[]), entropy(&[4, 4])), (0.0, 0.0));
        // Pairs 12 21 12 and 12 23: 3 different of 5; single tokens 1 2 3 of 7; fours: one.
        let samples = [vec![1, 2, 1, 2], vec![1, 2, 3], vec![]];
        close(distinct(&samples, 2), 3.0 / 5.0);
        close(distinct(&samples, 1), 3.0 / 7.0);
        assert_eq!((distinct(&samples, 4), distinct(&samples, 5), distinct(&samples, 0)), (1.0, 0.0, 0.0));
        assert_eq!(distinct(&[], 1), 0.0);
    }
}
