//! Which faces are one device? A pure function of the faces and of what operators decided.
//!
//! Because it is a function of a set, the order in which observations arrive does not matter, and taking a
//! decision back brings back what was before it. Strong evidence links, contradictions split, and what
//! contradicts itself links nothing:
//!
//! 1. Faces with one serial number (of one maker) are one device, whatever its cards: boards are swapped,
//!    and a wired and a wireless face are two cards. A serial that several machines show at the same time
//!    is no evidence: three cards at once, two models, or two cards whose counters run apart.
//! 2. A face without a serial belongs to the device of its card, unless that card was seen with several serials.
//! 3. A face whose card tells nothing belongs to the device of its engine, under the same rule.
//! 4. A face without strong evidence belongs to the face that it became, else to itself.
//! 5. Operators' decisions, oldest first: a merge joins two devices, a split parts the faces that show
//!    the evidence it names from those that do not.

use std::collections::{BTreeMap, BTreeSet};

use crate::evidence::models_agree;

pub use crate::evidence::standalone_id;

/// Two cards that were seen within this time were there at the same time: nobody swaps a board and reads
/// the device again so fast, and a sweep meets both faces of a device within it.
const AT_ONCE_MS: u64 = 15 * 60_000;

/// Counters of one device read over two cards at about the same time differ by what it printed meanwhile
/// (100 pages a minute make 1,500 in [`AT_ONCE_MS`]); those of two devices differ by their lives.
const MEANWHILE: u64 = 1_500;

/// The same where the cards were read in turn: then the ranges of one device overlap, and a card that
/// remembers an answer for a minute puts them this far apart.
const IN_TURN: u64 = 100;

/// Cards of one device that can be up at once: a wire and a radio.
const CARDS_AT_ONCE: usize = 2;

/// What is known of a face, as far as identity depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Face {
    /// Its name.
    pub key: String,
    /// `serial:…`.
    pub serial: Option<String>,
    /// Maker, in small letters.
    pub vendor: Option<String>,
    /// `mac:…`.
    pub mac: Option<String>,
    /// `engine:…`.
    pub engine: Option<String>,
    /// See [`crate::evidence::plain_model`]; may be empty.
    pub model: String,
    /// First and last seen, in milliseconds.
    pub seen: (u64, u64),
    /// Lowest and highest total.
    pub total: Option<(u64, u64)>,
    /// Keys that so many faces show that they tell nothing.
    pub common: Vec<String>,
    /// The face that it became.
    pub attached: Option<String>,
}

/// What an operator decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The devices of these two faces are one.
    Same(String, String),
    /// Of the device of this face, the faces with any of this evidence are another device than those without.
    Apart(String, Vec<String>),
    /// A case of the review list is right as it stands.
    Settled(String),
}

/// What a human should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Kind and key.
    pub id: String,
    /// In a sentence.
    pub what: String,
    /// Why nothing better was done.
    pub why: String,
    /// Faces, one a candidate device at the least.
    pub faces: Vec<usize>,
}

/// Who is who.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// Each device as indices of its faces, in rising order.
    pub devices: Vec<Vec<usize>>,
    /// What is doubtful.
    pub doubts: Vec<Doubt>,
}

/// The names under which a case about a key may stand on the review list.
pub fn doubt_ids(key: &str) -> [String; 3] {
    [format!("shared/{key}"), format!("cards/{key}"), format!("moved/{key}")]
}

/// Works out the devices. `faces` must be closed: whoever shares a key that is not common with a face of
/// it, or is named together with one by a decision, is in it.
pub fn resolve(faces: &[Face], decisions: &[Decision]) -> Resolution {
    let mut work = Work { faces, groups: Groups::new(faces.len()), doubts: Vec::new() };
    let serials = work.by_serial();
    work.by_card(&serials);
    work.by_engine(&serials);
    for (n, face) in faces.iter().enumerate() {
        let to = face.attached.as_ref().and_then(|key| faces.iter().position(|other| other.key == *key));
        if let Some(to) = to {
            work.groups.join(n, to);
        }
    }
    decide(faces, &mut work.groups, decisions);
    let Work { mut groups, doubts, .. } = work;
    let settled = |id: &str| decisions.iter().any(|d| matches!(d, Decision::Settled(case) if case == id));
    let mut open = Vec::new();
    for (doubt, together) in doubts {
        let roots: BTreeSet<usize> = doubt.faces.iter().map(|n| groups.root(*n)).collect();
        if (roots.len() == 1) == together && !settled(&doubt.id) {
            open.push(doubt);
        }
    }
    Resolution { devices: groups.into_sorted(), doubts: open }
}

/// Disjoint sets of indices.
struct Groups(Vec<usize>);

impl Groups {
    fn new(len: usize) -> Self {
        Groups((0..len).collect())
    }

    fn root(&mut self, mut n: usize) -> usize {
        while self.0[n] != n {
            self.0[n] = self.0[self.0[n]];
            n = self.0[n];
        }
        n
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        let (low, high) = (one.min(other), one.max(other));
        self.0[high] = low;
    }

    fn join_all(&mut self, members: &[usize]) {
        members.windows(2).for_each(|pair| self.join(pair[0], pair[1]));
    }

    fn into_sorted(mut self) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for n in 0..self.0.len() {
            groups.entry(self.root(n)).or_default().push(n);
        }
        groups.into_values().collect()
    }
}

struct Work<'f> {
    faces: &'f [Face],
    groups: Groups,
    /// With whether it stands while its faces are one device, or while they are several.
    doubts: Vec<(Doubt, bool)>,
}

impl Work<'_> {
    fn shown<'k>(&self, n: usize, key: &'k Option<String>) -> Option<&'k str> {
        key.as_deref().filter(|key| !self.faces[n].common.iter().any(|common| common == key))
    }

    /// Faces by a key that counts.
    fn index(&self, of: impl Fn(&Face) -> &Option<String>) -> BTreeMap<String, Vec<usize>> {
        let mut index: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (n, face) in self.faces.iter().enumerate() {
            if let Some(key) = self.shown(n, of(face)) {
                index.entry(key.to_owned()).or_default().push(n);
            }
        }
        index
    }

    /// Joins faces of one serial; answers which faces have one that counts.
    fn by_serial(&mut self) -> Vec<bool> {
        let mut counts = vec![false; self.faces.len()];
        for (key, members) in self.index(|face| &face.serial) {
            let makers: BTreeSet<&str> =
                members.iter().filter_map(|n| self.faces[*n].vendor.as_deref()).collect();
            // Whoever tells no maker is of the only one that is known.
            let only = (makers.len() == 1).then(|| makers.iter().next().copied()).flatten();
            let mut each: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
            for n in &members {
                each.entry(self.faces[*n].vendor.as_deref().or(only)).or_default().push(*n);
            }
            for of_maker in each.into_values() {
                match self.one_machine(&of_maker) {
                    Machines::One { doubtful } => {
                        of_maker.iter().for_each(|n| counts[*n] = true);
                        self.groups.join_all(&of_maker);
                        if doubtful {
                            self.doubts.push((two_cards(&key, of_maker), true));
                        }
                    }
                    Machines::Several(why) => self.doubts.push((shared(&key, why, of_maker), false)),
                }
            }
        }
        counts
    }

    /// Gives faces without a serial that counts to the device of their card.
    fn by_card(&mut self, serials: &[bool]) {
        for (key, members) in self.index(|face| &face.mac) {
            let (known, rest): (Vec<usize>, Vec<usize>) = members.iter().partition(|n| serials[**n]);
            self.groups.join_all(&rest);
            let owners: BTreeSet<usize> = known.iter().map(|n| self.groups.root(*n)).collect();
            match (owners.len(), rest.first()) {
                (0, _) | (1, None) => {}
                (1, Some(first)) => known.iter().for_each(|n| self.groups.join(*n, *first)),
                _ => self.doubts.push((moved_card(&key, members), false)),
            }
        }
    }

    /// Gives faces that neither serial nor card tells to the device of their engine.
    fn by_engine(&mut self, serials: &[bool]) {
        let mut engines = self.index(|face| &face.engine);
        engines.retain(|_, members| matches!(self.one_machine(members), Machines::One { .. }));
        // What holds a serial already is not joined by an engine.
        let held: Vec<usize> = (0..self.faces.len()).filter(|n| serials[*n]).collect();
        let held: BTreeSet<usize> = held.into_iter().map(|n| self.groups.root(n)).collect();
        for members in engines.values() {
            let free: Vec<usize> =
                members.iter().copied().filter(|n| !held.contains(&self.groups.root(*n))).collect();
            self.groups.join_all(&free);
        }
        let mut owners: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for members in engines.values() {
            let roots: BTreeSet<usize> = members.iter().map(|n| self.groups.root(*n)).collect();
            for free in roots.difference(&held) {
                owners.entry(*free).or_default().extend(roots.intersection(&held));
            }
        }
        for (free, owners) in owners {
            if let (1, Some(owner)) = (owners.len(), owners.first()) {
                self.groups.join(free, *owner);
            }
        }
    }

    /// Whether the faces that show one key can be one machine's.
    fn one_machine(&self, members: &[usize]) -> Machines {
        let mut cards: BTreeMap<&str, Card> = BTreeMap::new();
        for n in members {
            let face = &self.faces[*n];
            // An engine without a card stands for a card of its own.
            let alone = face.serial.is_none().then_some(&face.key);
            if let Some(card) = face.mac.as_ref().or(alone) {
                cards.entry(card).and_modify(|card| card.add(face)).or_insert_with(|| Card::of(face));
            }
        }
        let cards: Vec<Card> = cards.into_values().collect();
        let mut doubtful = false;
        for (n, one) in cards.iter().enumerate() {
            for other in &cards[n + 1..] {
                if !models_agree(&one.model, &other.model) {
                    return Machines::Several("different models show it");
                }
                if !one.is_with(other, AT_ONCE_MS) {
                    continue;
                }
                let meanwhile = if one.is_with(other, 0) { IN_TURN } else { MEANWHILE };
                match (one.total, other.total) {
                    (Some(a), Some(b)) if gap(a, b) > meanwhile => {
                        return Machines::Several("cards with different counters show it at the same time");
                    }
                    (Some(_), Some(_)) => {}
                    _ => doubtful = true,
                }
            }
        }
        let most =
            cards.iter().map(|card| cards.iter().filter(|other| other.holds(card.seen.0)).count()).max();
        if most.unwrap_or(0) > CARDS_AT_ONCE {
            return Machines::Several("more cards than a device has show it at the same time");
        }
        Machines::One { doubtful }
    }
}

enum Machines {
    One { doubtful: bool },
    Several(&'static str),
}

/// What one card was seen as, under one key.
struct Card {
    model: String,
    seen: (u64, u64),
    total: Option<(u64, u64)>,
}

impl Card {
    fn of(face: &Face) -> Self {
        Card { model: face.model.clone(), seen: face.seen, total: face.total }
    }

    fn add(&mut self, face: &Face) {
        // The longest way to write it, and the first in order, so that no order of faces matters.
        if (face.model.len(), &self.model) > (self.model.len(), &face.model) {
            self.model.clone_from(&face.model);
        }
        self.seen = (self.seen.0.min(face.seen.0), self.seen.1.max(face.seen.1));
        self.total = match (self.total, face.total) {
            (Some(one), Some(other)) => Some((one.0.min(other.0), one.1.max(other.1))),
            (one, other) => one.or(other),
        };
    }

    fn is_with(&self, other: &Card, slack_ms: u64) -> bool {
        self.seen.0 <= other.seen.1.saturating_add(slack_ms)
            && other.seen.0 <= self.seen.1.saturating_add(slack_ms)
    }

    fn holds(&self, at_ms: u64) -> bool {
        self.seen.0.saturating_sub(AT_ONCE_MS) <= at_ms && at_ms <= self.seen.1.saturating_add(AT_ONCE_MS)
    }
}

/// What lies between two ranges; 0 where they touch.
fn gap(one: (u64, u64), other: (u64, u64)) -> u64 {
    one.0.saturating_sub(other.1).max(other.0.saturating_sub(one.1))
}

fn decide(faces: &[Face], groups: &mut Groups, decisions: &[Decision]) {
    for decision in decisions {
        match decision {
            Decision::Same(one, other) => {
                let place = |key: &String| faces.iter().position(|face| face.key == *key);
                if let (Some(one), Some(other)) = (place(one), place(other)) {
                    groups.join(one, other);
                }
            }
            Decision::Apart(of, keys) => {
                let shows = |face: &Face| keys.iter().any(|key| face.shows(key));
                let mut parted = Groups::new(faces.len());
                for members in std::mem::replace(groups, Groups::new(0)).into_sorted() {
                    let meant = members.iter().any(|n| faces[*n].key == *of);
                    let (with, without): (Vec<usize>, Vec<usize>) =
                        members.into_iter().partition(|n| meant && shows(&faces[*n]));
                    parted.join_all(&with);
                    parted.join_all(&without);
                }
                *groups = parted;
            }
            Decision::Settled(_) => {}
        }
    }
}

impl Face {
    /// Whether it shows this key, or is it.
    pub fn shows(&self, key: &str) -> bool {
        let keys = [Some(&self.key), self.serial.as_ref(), self.mac.as_ref(), self.engine.as_ref()];
        keys.into_iter().flatten().any(|own| own == key)
    }
}

fn value(key: &str) -> &str {
    key.split_once(':').map_or(key, |(_, value)| value)
}

fn shared(key: &str, why: &str, faces: Vec<usize>) -> Doubt {
    let what = format!("serial {} is shown by several machines, so it tells none of them", value(key));
    Doubt { id: format!("shared/{key}"), what, why: why.to_owned(), faces }
}

fn two_cards(key: &str, faces: Vec<usize>) -> Doubt {
    let what = format!("serial {} is shown by two cards at the same time", value(key));
    let why = "taken for a wired and a wireless face of one device, but no counters of both are there to tell; \
               `quire split` makes two of it";
    Doubt { id: format!("cards/{key}"), what, why: why.to_owned(), faces }
}

fn moved_card(key: &str, faces: Vec<usize>) -> Doubt {
    let what = format!("card {} was seen with several serials", value(key));
    let why = "a card that moved, a print server with several devices, or a device that got another serial; \
               `quire merge` makes one of them";
    Doubt { id: format!("moved/{key}"), what, why: why.to_owned(), faces }
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
