//! The fields that the condition of an alert may name: what each is about, and what its values look like.
//!
//! A value that is not known is [`Value::Unknown`], never a guess: what depends on it is neither true nor false.

use std::borrow::Cow;
use std::fmt;

use quire_proto::reading::{Condition, Status, SupplyKind, SupplyState};

/// What a rule looks at, one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every device.
    Device,
    /// Every supply of every device.
    Supply,
    /// Every unit of the plan.
    Unit,
    /// Every node.
    Node,
    /// The cluster as a whole.
    Cluster,
}

impl Scope {
    /// As people say it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Scope::Device => "devices",
            Scope::Supply => "supplies",
            Scope::Unit => "units",
            Scope::Node => "nodes",
            Scope::Cluster => "the cluster",
        }
    }

    /// The one scope in which fields of both can be told; a supply is a part of its device.
    pub(super) fn join(self, other: Scope) -> Option<Scope> {
        match (self, other) {
            (Scope::Device, Scope::Supply) | (Scope::Supply, Scope::Device) => Some(Scope::Supply),
            (one, two) => (one == two).then_some(one),
        }
    }
}

/// What the values of a field are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Truth,
    Number,
    /// Milliseconds, written as `2h`.
    Span,
    Text,
    /// One of a few words.
    Word,
    /// Any of a few words, together.
    Words,
}

impl Kind {
    /// As people say it, and how such a value is written.
    pub(super) fn described(self) -> &'static str {
        match self {
            Kind::Truth => "true or false",
            Kind::Number => "a number: write one without quotes, such as 15",
            Kind::Span => "a time: write one such as 30m, 2h or 3d",
            Kind::Text => "a text: write it in quotes",
            Kind::Word => "a word: write it in quotes",
            Kind::Words => "a list of words: write one in quotes behind `contains`",
        }
    }
}

/// One enum of fields for each scope, and [`Field`] over all of them.
macro_rules! fields {
    ($($(#[$about:meta])* $scope:ident, $of:ident { $($(#[$doc:meta])* $field:ident = $name:literal, $kind:ident;)* })*) => {
        $(
            $(#[$about])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum $of { $($(#[$doc])* $field,)* }
        )*

        /// Everything that a condition may name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Field { $($(#[$about])* $scope($of),)* }

        impl Field {
            /// In the order in which people are told of them.
            pub const ALL: &'static [Field] = &[$($(Field::$scope($of::$field),)*)*];

            /// As conditions write it.
            pub fn name(self) -> &'static str {
                match self { $($(Field::$scope($of::$field) => $name,)*)* }
            }

            /// What it is told of.
            pub fn scope(self) -> Scope {
                match self { $(Field::$scope(_) => Scope::$scope,)* }
            }

            pub(super) fn kind(self) -> Kind {
                match self { $($(Field::$scope($of::$field) => Kind::$kind,)*)* }
            }
        }
    };
}

fields! {
    /// Of a device.
    Device, DeviceField {
        /// Its id.
        Id = "device.id", Text;
        /// Where it answered last, without the port.
        Address = "device.address", Text;
        /// The zone of that address.
        Zone = "device.zone", Text;
        /// Name of the node that read it.
        Node = "device.node", Text;
        /// Routers between node and device.
        Hops = "device.hops", Number;
        /// Brand.
        Vendor = "device.vendor", Text;
        /// Model.
        Model = "device.model", Text;
        /// Serial number.
        Serial = "device.serial", Text;
        /// Its name, as typed or as it says.
        Name = "device.name", Text;
        /// Its location, as typed or as it says.
        Location = "device.location", Text;
        /// Firmware version.
        Firmware = "device.firmware", Text;
        /// Asset number, as typed or as it says.
        Asset = "device.asset", Text;
        /// For how long it could have been read, and was not.
        SilentFor = "device.silent_for", Span;
        /// What it is doing; `offline` after two reads in a row without an answer.
        Status = "status", Word;
        /// What ails it.
        Conditions = "conditions", Words;
        /// The text on its panel.
        Display = "display", Text;
        /// Everything the marker made.
        Total = "counters.total", Number;
        /// Of these in black only.
        Mono = "counters.mono", Number;
        /// Of these in colour.
        Color = "counters.color", Number;
        /// From print jobs.
        Prints = "counters.prints", Number;
        /// From the glass.
        Copies = "counters.copies", Number;
        /// Received faxes put on paper.
        Faxes = "counters.faxes", Number;
        /// Scanned images.
        Scans = "counters.scans", Number;
        /// Two-sided.
        Duplex = "counters.duplex", Number;
        /// Large format.
        Large = "counters.large", Number;
    }
    /// Of one of its supplies.
    Supply, SupplyField {
        /// Its row in the device's table.
        Index = "supply.index", Number;
        /// As the device names it.
        Name = "supply.name", Text;
        /// What it is.
        Kind = "supply.kind", Word;
        /// Its colour.
        Color = "supply.color", Text;
        /// What is left, in its unit.
        Level = "supply.level", Number;
        /// When full, in its unit.
        Max = "supply.max", Number;
        /// What is left, in percent.
        Percent = "supply.percent", Number;
        /// What level and max count.
        Unit = "supply.unit", Text;
        /// In a word.
        State = "supply.state", Word;
    }
    /// Of a unit.
    Unit, UnitField {
        /// As `units` prints it.
        Id = "unit.id", Text;
        /// The zone from which it is read.
        Zone = "unit.zone", Text;
        /// Its own prefix.
        Segment = "unit.segment", Text;
        /// Whether a node has it.
        Owned = "unit.owned", Truth;
    }
    /// Of a node.
    Node, NodeField {
        /// Its name.
        Name = "node.name", Text;
        /// Where it stands.
        Zone = "node.zone", Text;
        /// Whether the leader hears it.
        Alive = "node.alive", Truth;
        /// Log entries that it lacks.
        Lag = "node.lag", Number;
        /// Whether its work was taken from it.
        Draining = "node.draining", Truth;
        /// Its program's version.
        Version = "node.version", Text;
    }
    /// Of the cluster.
    Cluster, ClusterField {
        /// Devices in the reports.
        Devices = "cluster.devices", Number;
        /// Outbox entries that the Web Admin does not have.
        Pending = "cluster.pending", Number;
        /// The link to the Web Admin.
        Upstream = "cluster.upstream", Word;
    }
}

/// What the link to the Web Admin may be.
const LINK: [&str; 4] = ["connected", "connecting", "disabled", "refused"];

impl Field {
    pub(super) fn by_name(name: &str) -> Option<Field> {
        Field::ALL.iter().copied().find(|field| field.name() == name)
    }

    /// The only words that its values may be; `None` where any text may come.
    pub(super) fn words(self) -> Option<Vec<&'static str>> {
        let known: [(Field, Vec<&'static str>); 5] = [
            (Field::Device(DeviceField::Status), Status::ALL.iter().map(|word| word.word()).collect()),
            (Field::Device(DeviceField::Conditions), Condition::ALL.iter().map(|word| word.word()).collect()),
            (Field::Supply(SupplyField::Kind), SupplyKind::ALL.iter().map(|word| word.word()).collect()),
            (Field::Supply(SupplyField::State), SupplyState::ALL.iter().map(|word| word.word()).collect()),
            (Field::Cluster(ClusterField::Upstream), LINK.to_vec()),
        ];
        known.into_iter().find(|(field, _)| *field == self).map(|(_, words)| words)
    }
}

/// What a field is of one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Nobody knows.
    Unknown,
    /// Yes or no.
    Truth(bool),
    /// A number, or milliseconds.
    Number(u64),
    /// Any text.
    Text(Cow<'a, str>),
    /// A word; where it is not telling (`unknown`, `offline`), no other word is ruled out by it.
    Word(&'a str, bool),
    /// All words that hold.
    Words(Vec<&'static str>),
}

impl<'a> Value<'a> {
    pub(super) fn text(text: Option<&'a str>) -> Value<'a> {
        text.map_or(Value::Unknown, |text| Value::Text(Cow::Borrowed(text)))
    }

    pub(super) fn number(number: Option<impl Into<u64>>) -> Value<'a> {
        number.map_or(Value::Unknown, |number| Value::Number(number.into()))
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unknown => f.write_str("not known"),
            Value::Truth(truth) => write!(f, "{truth}"),
            Value::Number(number) => write!(f, "{number}"),
            Value::Text(text) => f.write_str(text),
            Value::Word(word, _) => f.write_str(word),
            Value::Words(words) => f.write_str(&words.join(" ")),
        }
    }
}
