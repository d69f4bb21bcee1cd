//! What a read heard, decoded or not.

use std::ops::Range;

use super::answers::Answers;
use crate::snmp::Expected;

/// What was heard in a read: most repeated reads decode no more of it than they need, and no profile asks for the rest.
#[derive(Clone, Debug)]
pub(crate) struct Fresh {
    answers: Answers,
    undecoded: Option<Box<Undecoded>>,
}

impl Fresh {
    pub(super) fn new(answers: Answers, undecoded: Option<Box<Undecoded>>) -> Fresh {
        Fresh { answers, undecoded }
    }

    /// All of it.
    pub(crate) fn answers(&self) -> Answers {
        let mut answers = self.answers.clone();
        self.undecoded.iter().for_each(|undecoded| undecoded.join(&mut answers));
        answers
    }
}

/// Answers that were as expected.
#[derive(Clone, Debug)]
pub(super) struct Undecoded {
    /// To the question of every read.
    pub(super) often: Expected,
    /// Where in it the successors of what is watched stand, which are not the device's answers to anything.
    pub(super) watched: Range<usize>,
    /// To those that are asked now and then.
    pub(super) rest: Vec<Expected>,
}

impl Undecoded {
    /// Adds them to what else was heard.
    pub(super) fn join(&self, answers: &mut Answers) {
        let often = self.often.decode().varbinds.into_iter().enumerate();
        let own = often.filter(|(at, _)| !self.watched.contains(at)).map(|(_, varbind)| varbind);
        let rest = self.rest.iter().flat_map(|answer| answer.decode().varbinds);
        own.chain(rest).for_each(|varbind| answers.put(varbind));
    }
}
