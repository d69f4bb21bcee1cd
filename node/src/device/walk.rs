//! Walks several columns at once with GETBULK, and survives what devices make of it.
//!
//! A column ends when the device leaves it, goes backwards, stands still, or reaches the column's limit. GETBULK that
//! brings nothing is replaced by GETNEXT, an answer that is too big by a smaller question. Never loops: every answer
//! either advances a column, ends one, or narrows the next question.

use quire_proto::oid::Oid;

use super::answers::{Answers, has_value};
use crate::snmp::{Request, Response};

/// error-status of RFC 3416 section 3 that a walk can do something about.
const TOO_BIG: u32 = 1;
const NO_SUCH_NAME: u32 = 2;

#[derive(Clone, Debug)]
struct Column {
    root: Oid,
    cursor: Oid,
    /// Rows still wanted; 0 is the end.
    left: u16,
    /// Only its first instance is wanted.
    scalar: bool,
    /// Asked for several rows at a time.
    repeat: bool,
}

/// One multi-column walk in progress.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    columns: Vec<Column>,
    /// Columns by the positions of the last question: non-repeaters first.
    asked: Vec<usize>,
    once: usize,
    /// Most rows at a time, and how many are wanted now.
    repetitions: u8,
    wanted: u8,
    /// Variable bindings of the last good answer: so many fit.
    fits: u8,
    /// Most columns in one question.
    width: usize,
    bulk: bool,
}

impl Walk {
    /// `once` are asked for their first instance only; each of `many` for at most `limit` rows, `repetitions` at a time.
    pub(crate) fn new(once: &[Oid], many: &[Oid], limit: u16, repetitions: u8, bulk: bool) -> Walk {
        let mut walk = Walk {
            columns: Vec::new(),
            asked: Vec::new(),
            once: 0,
            repetitions,
            wanted: repetitions,
            fits: 0,
            width: 0,
            bulk,
        };
        once.iter().for_each(|root| walk.add(root, root, 1, false));
        many.iter().for_each(|root| walk.add(root, root, limit, true));
        walk
    }

    fn add(&mut self, root: &Oid, cursor: &Oid, left: u16, repeat: bool) {
        let scalar = !repeat && left == 1;
        self.columns.push(Column { root: root.clone(), cursor: cursor.clone(), left, scalar, repeat });
        self.width = self.columns.len();
    }

    /// Adds a column that is asked for one row in every question.
    pub(crate) fn row_by_row(&mut self, root: &Oid, limit: u16) {
        // One row alone would be a scalar.
        self.add(root, root, limit.max(2), false);
    }

    /// Adds what lies below `root` behind `cursor`, column after column, asked as one: it takes one name in a question.
    pub(crate) fn span(&mut self, root: &Oid, cursor: &Oid, limit: u16) {
        self.add(root, cursor, limit, true);
    }

    /// Adds the one instance below `root` behind `cursor`.
    pub(crate) fn behind(&mut self, root: &Oid, cursor: &Oid) {
        self.add(root, cursor, 1, false);
    }

    /// How many rows are wanted next.
    pub(crate) fn want(&mut self, rows: u8) {
        self.wanted = rows.max(1);
    }

    /// True while GETBULK is still believed to work.
    pub(crate) fn bulk(&self) -> bool {
        self.bulk
    }

    /// Goes on with GETNEXT.
    pub(crate) fn without_bulk(&mut self) {
        self.bulk = false;
    }

    /// True when every name that is asked once has had its answer.
    pub(crate) fn scalars_are_done(&self) -> bool {
        self.columns.iter().all(|column| !column.scalar || column.left == 0)
    }

    /// True while the column is wanted and nothing of it was heard.
    pub(crate) fn is_untouched(&self, root: &[u32]) -> bool {
        let mut columns = self.columns.iter().filter(|column| column.root.arcs() == root);
        columns.any(|column| column.left > 0 && column.cursor == column.root)
    }

    /// Ends the columns below `root`, because enough is known.
    pub(crate) fn stop(&mut self, root: &[u32]) {
        for column in self.columns.iter_mut().filter(|column| column.root.arcs().starts_with(root)) {
            column.left = 0;
        }
    }

    /// The next question; `None` when every column has ended.
    pub(crate) fn request(&mut self) -> Option<Request> {
        let open = |once: bool| {
            let columns = self.columns.iter().enumerate();
            columns.filter(move |(_, column)| column.left > 0 && column.repeat != once).map(|(at, _)| at)
        };
        self.asked = open(true).chain(open(false)).take(self.width).collect();
        self.once = self.asked.iter().filter(|at| !self.columns[**at].repeat).count();
        if self.asked.is_empty() {
            return None;
        }
        let oids: Vec<Oid> = self.asked.iter().map(|at| self.columns[*at].cursor.clone()).collect();
        if !self.bulk {
            return Some(Request::GetNext(oids));
        }
        let most = self.asked[self.once..].iter().map(|at| self.columns[*at].left).max().unwrap_or(1);
        // What was too much beside other columns is not for one alone.
        let alone = self.asked.len() == 1;
        let repetitions = if alone { self.repetitions.max(self.fits) } else { self.repetitions };
        Some(Request::GetBulk {
            non_repeaters: u8::try_from(self.once).unwrap_or(u8::MAX),
            max_repetitions: repetitions.min(self.wanted).min(u8::try_from(most).unwrap_or(u8::MAX)),
            oids,
        })
    }

    /// Takes the answer to the last question.
    pub(crate) fn handle(&mut self, response: &Response, answers: &mut Answers) {
        if response.error_status != 0 {
            self.handle_error(response);
            return;
        }
        let mut moved = false;
        self.fits = u8::try_from(response.varbinds.len()).unwrap_or(u8::MAX);
        answers.expect(response.varbinds.len());
        for (position, varbind) in response.varbinds.iter().enumerate() {
            let Some(at) = self.column_at(position) else { break };
            let column = &mut self.columns[at];
            if column.left == 0 {
                continue;
            }
            moved = true;
            // RFC 3416 section 4.2.2: names increase; one that does not would be walked for ever.
            if varbind.oid.starts_with(&column.root)
                && varbind.oid > column.cursor
                && has_value(&varbind.value)
            {
                answers.insert(varbind);
                column.cursor = varbind.oid.clone();
                column.left -= 1;
            } else {
                column.left = 0;
            }
        }
        if !moved && self.bulk {
            self.bulk = false;
        } else if !moved {
            self.drop_asked();
        }
    }

    fn column_at(&self, position: usize) -> Option<usize> {
        if position < self.once || !self.bulk {
            return self.asked.get(position).copied();
        }
        let repeated = self.asked.len() - self.once;
        if repeated == 0 {
            return None;
        }
        self.asked.get(self.once + (position - self.once) % repeated).copied()
    }

    fn handle_error(&mut self, response: &Response) {
        let offender =
            (response.error_index as usize).checked_sub(1).and_then(|at| self.asked.get(at).copied());
        match (response.error_status, offender) {
            (TOO_BIG, _) if self.bulk && self.asked.len() == 1 && self.fits > 1 => self.fits /= 2,
            (TOO_BIG, _) if self.bulk && self.repetitions.min(self.wanted) > 1 => {
                self.repetitions = self.repetitions.min(self.wanted) / 2;
                self.fits = self.fits.min(self.repetitions);
            }
            (TOO_BIG, _) if self.asked.len() > 1 => self.width = self.asked.len() / 2,
            // SNMPv1 fails the whole question when one name has no successor; genErr names the row that broke.
            (_, Some(at)) => self.columns[at].left = 0,
            (NO_SUCH_NAME, None) if self.asked.len() > 1 => self.width = self.asked.len() / 2,
            (_, None) if self.bulk => self.bulk = false,
            (_, None) if self.asked.len() > 1 => self.width = self.asked.len() / 2,
            (_, None) => self.drop_asked(),
        }
    }

    fn drop_asked(&mut self) {
        for at in &self.asked {
            self.columns[*at].left = 0;
        }
    }
}
