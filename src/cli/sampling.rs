//! How to denoise, as asked for by flags or by the keys of a JSON line, and what it means.

use serde::Deserialize;

use super::args::{Bos, OrderName};
use crate::backend::Confidence;
use crate::error::{Error, Result};
use crate::sample::{Canvas, CountSchedule, Order, Request};

/// Denoising steps when nothing else is said.
pub const DEFAULT_STEPS: usize = 64;
/// New tokens when nothing else is said and the context allows.
pub const DEFAULT_LENGTH: usize = 128;

/// Choices that were made; `None` leaves the default. The field names are the keys of a line of
/// `lacuna batch`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    pub length: Option<usize>,
    pub steps: Option<usize>,
    pub order: Option<OrderName>,
    pub schedule: Option<CountSchedule>,
    pub confidence_noise: Option<f32>,
    pub remask: Option<bool>,
    pub threshold: Option<f32>,
    pub block_length: Option<usize>,
    pub ar: Option<bool>,
    pub temperature: Option<f32>,
    pub greedy: Option<bool>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub seed: Option<u64>,
    pub sequence: Option<u32>,
    pub suppress_mask: Option<bool>,
    pub mask_id: Option<u32>,
    pub shift: Option<bool>,
    pub ignore_eos: Option<bool>,
    pub bos: Option<Bos>,
}

impl Sampling {
    /// These choices, and `defaults` where there is none. A line that says how tokens are drawn
    /// (`temperature` or `greedy`) or in which order (`order`, `threshold` or `ar`) replaces the
    /// defaults' whole answer to that question.
    pub fn over(self, defaults: &Sampling) -> Sampling {
        let d = defaults.clone();
        let heat = self.temperature.is_some() || self.greedy.is_some();
        let order = self.order.is_some() || self.threshold.is_some() || self.ar.is_some();
        let keep = |mine: Option<bool>, theirs: Option<bool>, replaced: bool| {
            if replaced { mine } else { mine.or(theirs) }
        };
        Sampling {
            length: self.length.or(d.length),
            steps: self.steps.or(d.steps),
            order: if order { self.order } else { d.order },
            schedule: if order { self.schedule } else { self.schedule.or(d.schedule) },
            confidence_noise: if order {
                self.confidence_noise
            } else {
                self.confidence_noise.or(d.confidence_noise)
            },
            remask: keep(self.remask, d.remask, order),
            threshold: if order { self.threshold } else { d.threshold },
            block_length: if self.ar == Some(true) {
                self.block_length
            } else {
                self.block_length.or(d.block_length)
            },
            ar: keep(self.ar, d.ar, order),
            temperature: if heat { self.temperature } else { d.temperature },
            greedy: keep(self.greedy, d.greedy, heat),
            top_p: self.top_p.or(d.top_p),
            top_k: self.top_k.or(d.top_k),
            seed: self.seed.or(d.seed),
            sequence: self.sequence.or(d.sequence),
            suppress_mask: self.suppress_mask.or(d.suppress_mask),
            mask_id: self.mask_id.or(d.mask_id),
            shift: self.shift.or(d.shift),
            ignore_eos: self.ignore_eos.or(d.ignore_eos),
            bos: self.bos.or(d.bos),
        }
    }

    pub fn autoregressive(&self) -> bool {
        self.ar == Some(true)
    }

    /// The order in which positions are committed.
    ///
    /// # Errors
    /// [`Error::Request`] for choices that contradict one another or are out of range.
    pub fn order(&self) -> Result<Order> {
        let by = match self.order {
            Some(OrderName::Random) => None,
            Some(OrderName::Confidence) => Some(Confidence::MaxProb),
            Some(OrderName::Entropy) => Some(Confidence::Entropy),
            Some(OrderName::Margin) => Some(Confidence::Margin),
            None => self.threshold.map(|_| Confidence::MaxProb),
        };
        let only_confidence = [
            ("schedule", self.schedule.is_some()),
            ("confidence-noise", self.confidence_noise.is_some_and(|x| x != 0.0)),
            ("remask", self.remask == Some(true)),
        ];
        let stray = only_confidence.iter().find(|(_, given)| *given).map(|(name, _)| *name);
        match (by, self.threshold, stray) {
            (None, Some(_), _) => Err(Error::request(
                "--threshold compares confidences, which --order random has none of; \
                 use --order confidence, entropy or margin",
            )),
            (None, None, Some(name)) => Err(Error::request(format!(
                "--{name} belongs to the confidence orders; add --order confidence, entropy or margin"
            ))),
            (Some(_), Some(_), Some(name)) => Err(Error::request(format!(
                "--{name} has no meaning with --threshold; leave one of them out"
            ))),
            (None, None, None) => Ok(Order::Random),
            (Some(by), Some(tau), None) => {
                let fits = match by {
                    Confidence::Entropy => tau.is_finite() && tau <= 0.0,
                    Confidence::MaxProb | Confidence::Margin => (0.0..=1.0).contains(&tau),
                };
                if fits {
                    Ok(Order::Threshold { by, tau })
                } else {
                    let scale = if by == Confidence::Entropy {
                        "minus the entropy in nats, 0 or less"
                    } else {
                        "a probability from 0 to 1"
                    };
                    Err(Error::request(format!("--threshold {tau}: expected {scale}")))
                }
            }
            (Some(by), None, _) => {
                let noise = self.confidence_noise.unwrap_or(0.0);
                if !(noise.is_finite() && noise >= 0.0) {
                    return Err(Error::request(format!("--confidence-noise {noise}: expected 0 or more")));
                }
                if self.remask == Some(true) && by != Confidence::MaxProb {
                    return Err(Error::request(
                        "--remask compares probabilities; use it with --order confidence",
                    ));
                }
                let schedule = self.schedule.unwrap_or_default();
                Ok(Order::Confidence { by, schedule, noise, remask: self.remask == Some(true) })
            }
        }
    }

    /// The order of left-to-right decoding, which has none to choose.
    fn no_order(&self) -> Result<Order> {
        let stray = [
            ("order", self.order.is_some()),
            ("schedule", self.schedule.is_some()),
            ("confidence-noise", self.confidence_noise.is_some()),
            ("remask", self.remask == Some(true)),
            ("threshold", self.threshold.is_some()),
            ("block-length", self.block_length.is_some()),
        ];
        match stray.iter().find(|(_, given)| *given) {
            None => Ok(Order::Random),
            Some((name, _)) => Err(Error::request(format!(
                "--{name} has no meaning with --ar, which goes from left to right; leave one of them out"
            ))),
        }
    }

    /// The request for `canvas`. An end-of-sequence token ends the text only where the canvas ends
    /// in a gap: given text is never cut off.
    ///
    /// # Errors
    /// [`Error::Request`] for a value out of range.
    pub fn request(&self, canvas: Canvas) -> Result<Request> {
        let steps = at_least_one("steps", self.steps)?.unwrap_or(DEFAULT_STEPS);
        let block_length = at_least_one("block-length", self.block_length)?;
        let temperature = match (self.greedy, self.temperature) {
            (Some(true), Some(t)) if t != 0.0 => {
                return Err(Error::request(format!("--greedy is --temperature 0, but --temperature is {t}")));
            }
            (Some(true), _) => 0.0,
            (_, t) => t.unwrap_or(1.0),
        };
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::request(format!("--temperature {temperature}: expected 0 or more")));
        }
        let top_p = self.top_p.unwrap_or(0.9);
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::request(format!("--top-p {top_p}: expected more than 0, at most 1")));
        }
        let open = canvas.fixed().last() == Some(&false);
        let order = if self.autoregressive() { self.no_order()? } else { self.order()? };
        let mut request = Request::new(canvas);
        request.steps = steps;
        request.order = order;
        request.block_length = block_length;
        request.temperature = temperature;
        request.top_p = top_p;
        request.top_k = self.top_k.unwrap_or(0);
        request.seed = self.seed.unwrap_or(0);
        request.sequence = self.sequence.unwrap_or(0);
        request.suppress_mask = self.suppress_mask;
        request.mask_id = self.mask_id;
        request.shift = self.shift;
        request.stop_at_eos = open && self.ignore_eos != Some(true);
        request.autoregressive = self.autoregressive();
        Ok(request)
    }
}

fn at_least_one(flag: &str, value: Option<usize>) -> Result<Option<usize>> {
    match value {
        Some(0) => Err(Error::request(format!("--{flag} 0: expected 1 or more"))),
        other => Ok(other),
    }
}

/// The name of an order, for people and for JSON.
pub fn order_name(request: &Request) -> &'static str {
    let by = match request.order {
        _ if request.autoregressive => return "autoregressive",
        Order::Random => return "random",
        Order::Confidence { by, .. } | Order::Threshold { by, .. } => by,
    };
    match by {
        Confidence::MaxProb => "confidence",
        Confidence::Entropy => "entropy",
        Confidence::Margin => "margin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Part;

    fn json(s: &str) -> Sampling {
        serde_json::from_str(s).unwrap()
    }

    fn refused(s: &str) -> String {
        json(s).request(Canvas::prefix(&[1], 3)).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_the_papers() {
        let r = Sampling::default().request(Canvas::prefix(&[1], 3)).unwrap();
        assert_eq!((r.order, r.steps, r.temperature, r.top_p, r.seed), (Order::Random, 64, 1.0, 0.9, 0));
        assert!(r.stop_at_eos && !r.autoregressive);
    }

    #[test]
    fn orders() {
        let order = |s| json(s).order().unwrap();
        assert_eq!(
            order(r#"{"order":"confidence","schedule":"cosine","remask":true,"confidence_noise":0.5}"#),
            Order::Confidence {
                by: Confidence::MaxProb,
                schedule: CountSchedule::Cosine,
                noise: 0.5,
                remask: true
            }
        );
        assert_eq!(order(r#"{"threshold":0.9}"#), Order::Threshold { by: Confidence::MaxProb, tau: 0.9 });
        assert_eq!(
            order(r#"{"threshold":-1.5,"order":"entropy"}"#),
            Order::Threshold { by: Confidence::Entropy, tau: -1.5 }
        );
    }

    #[test]
    fn contradictions_name_the_flag() {
        for (line, flag) in [
            (r#"{"remask":true}"#, "--remask"),
            (r#"{"remask":true,"order":"entropy"}"#, "--remask"),
            (r#"{"schedule":"cosine"}"#, "--schedule"),
            (r#"{"order":"random","threshold":0.5}"#, "--threshold"),
            (r#"{"threshold":0.5,"remask":true}"#, "--remask"),
            (r#"{"threshold":1.5}"#, "--threshold"),
            (r#"{"steps":0}"#, "--steps"),
            (r#"{"block_length":0}"#, "--block-length"),
            (r#"{"temperature":-1}"#, "--temperature"),
            (r#"{"top_p":1.5}"#, "--top-p"),
            (r#"{"top_p":0}"#, "--top-p"),
            (r#"{"greedy":true,"temperature":0.7}"#, "--greedy"),
            (r#"{"order":"confidence","confidence_noise":-1}"#, "--confidence-noise"),
            (r#"{"ar":true,"threshold":0.5}"#, "--threshold"),
            (r#"{"ar":true,"order":"random"}"#, "--order"),
            (r#"{"ar":true,"block_length":4}"#, "--block-length"),
        ] {
            assert!(refused(line).contains(flag), "{line}: {}", refused(line));
        }
    }

    #[test]
    fn a_line_replaces_a_whole_answer() {
        let defaults = json(r#"{"order":"confidence","remask":true,"greedy":true,"seed":4,"top_k":5}"#);
        let line = json(r#"{"order":"random","temperature":0.5}"#).over(&defaults);
        let r = line.request(Canvas::prefix(&[1], 3)).unwrap();
        assert_eq!((r.order, r.temperature, r.seed, r.top_k), (Order::Random, 0.5, 4, 5));
        let r = json("{}").over(&defaults).request(Canvas::prefix(&[1], 3)).unwrap();
        assert_eq!(r.temperature, 0.0);
        assert!(matches!(r.order, Order::Confidence { remask: true, .. }));
        assert!(
            json(r#"{"ar":true}"#).over(&defaults).request(Canvas::prefix(&[1], 3)).unwrap().autoregressive
        );
    }

    #[test]
    fn given_text_after_a_gap_is_never_cut_off() {
        let between = Canvas::new(&[Part::Fixed(vec![1]), Part::Gap(2), Part::Fixed(vec![3])]);
        assert!(!Sampling::default().request(between).unwrap().stop_at_eos);
        let open = Canvas::prefix(&[1], 2);
        assert!(!json(r#"{"ignore_eos":true}"#).request(open).unwrap().stop_at_eos);
    }

    #[test]
    fn unknown_keys_are_named() {
        let e = serde_json::from_str::<Sampling>(r#"{"lenght":4}"#).unwrap_err().to_string();
        assert!(e.contains("lenght"), "{e}");
    }
}
