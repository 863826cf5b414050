//! Journal records: what is durable about one execution. Format: `docs/formats/journal.md`.

use std::{io, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

use crate::{
    model::{Digest, Instant},
    plan::Plan,
    set::SetId,
    tagged::{self, NoFields, Tagged},
};

/// One thing that a journal tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// The first record: the whole plan.
    Planned {
        /// The plan.
        plan: Arc<Plan>,
        /// The set that this execution is part of: it waits before `confirm` until the set is committed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        set: Option<SetId>,
    },
    /// The set of this execution is committed: from here on it only goes forward.
    Released,
    /// A step is about to be performed.
    Intent {
        /// Index of the step in the plan.
        step: usize,
    },
    /// A step's effect is durable.
    Done {
        /// Index of the step in the plan.
        step: usize,
        /// Digest of what the step wrote and a later reader must find unaltered: the restore point's manifest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        evidence: Option<Digest>,
    },
    /// A step failed; everything started is undone from here on.
    Failed {
        /// Index of the step in the plan.
        step: usize,
        /// Why, for people.
        error: String,
    },
    /// A later process took over after an interruption.
    Resumed,
    /// Somebody decided to go back.
    TurnedBack {
        /// Why, for people.
        reason: String,
    },
    /// A step is about to be undone.
    UndoIntent {
        /// Index of the step in the plan.
        step: usize,
    },
    /// A step's effect is durably gone.
    Undone {
        /// Index of the step in the plan.
        step: usize,
    },
    /// A step could not be undone.
    UndoFailed {
        /// Index of the step in the plan.
        step: usize,
        /// Why, for people.
        error: String,
    },
    /// The execution has ended. An end in [`Outcome::Stuck`] is not recorded: it can be taken up again.
    Finished {
        /// How.
        outcome: Outcome,
    },
}

impl Tagged for Record {
    const TAG: &'static str = "record";
    const VARIANTS: &'static [&'static str] = &[
        "planned",
        "released",
        "intent",
        "done",
        "failed",
        "resumed",
        "turned-back",
        "undo-intent",
        "undone",
        "undo-failed",
        "finished",
    ];

    fn variant<'de, D: Deserializer<'de>>(name: &str, fields: D) -> Option<Result<Self, D::Error>> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Planned {
            plan: Arc<Plan>,
            #[serde(default)]
            set: Option<SetId>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Numbered {
            step: usize,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Proven {
            step: usize,
            #[serde(default)]
            evidence: Option<Digest>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Failure {
            step: usize,
            error: String,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Reasoned {
            reason: String,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Ended {
            outcome: Outcome,
        }
        Some(match name {
            "planned" => {
                Planned::deserialize(fields).map(|Planned { plan, set }| Self::Planned { plan, set })
            }
            "released" => NoFields::deserialize(fields).map(|_| Self::Released),
            "intent" => Numbered::deserialize(fields).map(|Numbered { step }| Self::Intent { step }),
            "done" => {
                Proven::deserialize(fields).map(|Proven { step, evidence }| Self::Done { step, evidence })
            }
            "failed" => {
                Failure::deserialize(fields).map(|Failure { step, error }| Self::Failed { step, error })
            }
            "resumed" => NoFields::deserialize(fields).map(|_| Self::Resumed),
            "turned-back" => {
                Reasoned::deserialize(fields).map(|Reasoned { reason }| Self::TurnedBack { reason })
            }
            "undo-intent" => Numbered::deserialize(fields).map(|Numbered { step }| Self::UndoIntent { step }),
            "undone" => Numbered::deserialize(fields).map(|Numbered { step }| Self::Undone { step }),
            "undo-failed" => {
                Failure::deserialize(fields).map(|Failure { step, error }| Self::UndoFailed { step, error })
            }
            "finished" => Ended::deserialize(fields).map(|Ended { outcome }| Self::Finished { outcome }),
            _ => return None,
        })
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        tagged::deserialize(deserializer)
    }
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// The new state is current and good.
    Confirmed,
    /// A step failed or was interrupted; everything is as before.
    Undone {
        /// Why.
        reason: String,
    },
    /// A probe failed after the switch; everything is as before.
    ProbeFailed {
        /// Why.
        reason: String,
    },
    /// A probe failed after the switch and the new release was kept, as the plan says.
    KeptUnconfirmed,
    /// Going back failed; somebody must act.
    Stuck {
        /// Why it went back.
        reason: String,
    },
}

/// Why a line is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The checksum does not match: torn or altered.
    #[error("its checksum does not match")]
    Checksum,
    /// The checksum matches but the content is unknown: written by a newer program.
    #[error("it cannot be read: {0}")]
    Syntax(String),
}

/// Timestamped records as written; the time is for people and decides nothing.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<T> {
    at: Instant,
    #[serde(rename = "do")]
    records: T,
}

impl Record {
    /// The journal line of `records`, ending in a newline: 16 hexadecimal digits of the SHA-256 of the JSON, a space, the
    /// JSON. What is written together (a step's outcome and the next one's intent) is one line, so that a torn write can
    /// only ever damage the last line and never leaves one of them without the other.
    pub fn to_line(records: &[Self], at: Instant) -> Vec<u8> {
        records_line(records, at)
    }

    /// Writes the line of [`Record::to_line`] to `out`, in pieces of a few bytes: the line of the plan of a large release takes
    /// more memory than the plan. Returns its length in bytes.
    ///
    /// # Errors
    /// Whatever `out` reports; part of the line may be written then.
    pub fn write_line(records: &[Self], at: Instant, out: &mut dyn io::Write) -> io::Result<u64> {
        let line = Line { at, records };
        let digest = Digest::of_json(&line)?.to_string();
        let mut out = Counted { out, bytes: 0 };
        io::Write::write_all(&mut out, &digest.as_bytes()[..16])?;
        io::Write::write_all(&mut out, b" ")?;
        serde_json::to_writer(&mut out, &line)?;
        io::Write::write_all(&mut out, b"\n")?;
        Ok(out.bytes)
    }

    /// Reads a line without its newline.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn from_line(line: &[u8]) -> Result<(Instant, Vec<Self>), RecordError> {
        line_records(line)
    }
}

/// Counts what goes through it.
struct Counted<'a> {
    out: &'a mut dyn io::Write,
    bytes: u64,
}

impl io::Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The line of records that are written together, of whichever journal.
pub(crate) fn records_line<T: Serialize>(records: &[T], at: Instant) -> Vec<u8> {
    checked_line(&Line { at, records })
}

/// The records of a line without its newline.
pub(crate) fn line_records<T: DeserializeOwned>(line: &[u8]) -> Result<(Instant, Vec<T>), RecordError> {
    let json = checked_json(line).ok_or(RecordError::Checksum)?;
    let line: Line<Vec<T>> =
        serde_json::from_slice(json).map_err(|error| RecordError::Syntax(error.to_string()))?;
    Ok((line.at, line.records))
}

/// One line of JSON behind its checksum. Journal and state log share this form. The line of a plan can be long, so it is made
/// in place.
pub(crate) fn checked_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = b"................ ".to_vec();
    serde_json::to_writer(&mut line, value).expect("records always serialise, and memory takes them");
    let digest = Digest::of(&line[17..]).to_string();
    line[..16].copy_from_slice(&digest.as_bytes()[..16]);
    line.push(b'\n');
    line
}

/// The JSON of a line whose checksum holds.
pub(crate) fn checked_json(line: &[u8]) -> Option<&[u8]> {
    let (checksum, json) = (line.get(..16)?, line.get(17..)?);
    let digest = Digest::of(json).to_string();
    (line[16] == b' ' && checksum == &digest.as_bytes()[..16]).then_some(json)
}
