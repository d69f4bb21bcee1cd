//! Every flag and command, with the texts that `--help` prints.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use quire_proto::address::{Exclusion, Target};

use super::output::Format;
use super::secret::SecretText;
use crate::config::NodeOptions;
use crate::telemetry::LogFormat;

/// Wrong usage that the parser cannot see: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Finds printers, copiers and MFPs and reads their meters: alone, or as a cluster of nodes.
#[derive(Debug, Parser)]
#[command(name = "quire", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// The node's directory; on other commands, of the running node that they speak to
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// How listings are printed; json is one object a line
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) format: Format,
    /// How log lines look; what is logged is up to RUST_LOG
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Look for devices once, with no cluster, and print what they say
    Discover(Box<Discover>),
    /// Run a node of a cluster
    Node(Box<Node>),
    /// Make tokens with which nodes join
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Make tokens for the HTTP API
    ApiToken {
        #[command(subcommand)]
        command: ApiTokenCommand,
    },
    /// The cluster in one object
    Status,
    /// The nodes
    Members,
    /// Which node has which unit
    Plan {
        /// Say why this address is read by the node that reads it
        #[arg(long, value_name = "ADDRESS")]
        explain: Option<std::net::IpAddr>,
    },
    /// The units and how far their sweeps have come
    Units,
    /// Which node reaches which segment, and over how many routers
    Reachability,
    /// The segments that nodes and routers made known, and what becomes of them
    Segments {
        #[command(subcommand)]
        command: Option<SegmentsCommand>,
    },
    /// The devices
    Devices {
        /// Those too that were not read for so long that they left the reports
        #[arg(long)]
        all: bool,
    },
    /// Show one device with all its evidence, or type values that no reading overwrites
    Device {
        #[command(subcommand)]
        command: DeviceCommand,
    },
    /// What happened to devices: counters that started over, supplies that were replaced, devices that left
    Events {
        /// Of this device alone
        #[arg(long, value_name = "ID")]
        device: Option<String>,
    },
    /// What is doubtful about which device is which
    Review {
        /// Take this case off the list: it is right as it stands
        #[arg(long, value_name = "CASE")]
        settle: Option<String>,
    },
    /// What operators decided about it, and the numbers to undo that
    Decisions,
    /// Make one device of two
    Merge {
        /// Its id
        device: String,
        /// The other one's id
        other: String,
    },
    /// Make two devices of one
    Split {
        /// Its id
        device: String,
        /// What the readings of the other one show: a serial, a hardware address, an engine's id
        #[arg(required = true)]
        evidence: Vec<String>,
    },
    /// Take back a merge, a split or a settled case
    Undo {
        /// As `decisions` lists it
        decision: u64,
    },
    /// The readings, oldest first
    Readings {
        /// Only those at or after this time (RFC 3339)
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
    },
    /// The alerts: what of the rules in [[alert]] holds now, then what did within the last week
    Alerts,
    /// What operators did
    Audit,
    /// Show, check or change the settings of the cluster
    Settings {
        #[command(subcommand)]
        command: SettingsCommand,
    },
    /// List, change and try the profiles: what is known of device families beyond the standard
    Script {
        #[command(subcommand)]
        command: ScriptCommand,
    },
    /// Take all work from a node
    Drain {
        /// Its name
        node: String,
    },
    /// Give a drained node work again
    Resume {
        /// Its name
        node: String,
    },
    /// Remove a node from the cluster for ever
    Remove {
        /// Its name
        node: String,
    },
    /// Until when each node's certificate is good, by which CA, and how far a change of CA or cluster key is
    Certificates,
    /// Change what nodes know each other by, or what secrets are sealed with, while everything runs
    Rotate {
        #[command(subcommand)]
        command: RotateCommand,
    },
    /// Make another node the leader
    TransferLeader {
        /// Its name
        node: String,
    },
    /// Register the cluster at a Web Admin
    Enroll(Enroll),
    /// Sweep a segment now, or all
    Sweep {
        /// As written in the settings, or a unit
        segment: Option<String>,
    },
    /// Read a device now
    Read {
        /// Its id
        device: String,
    },
    /// Go on with this node alone, when so many others are lost for good that no majority can come back
    ///
    /// Works on a running node and on a stopped one. What only the others had is lost; should they come back, they are
    /// refused: let them join anew with empty directories.
    Recover {
        /// Yes: the other nodes will not come back as they are
        #[arg(long, required = true)]
        i_have_lost_quorum: bool,
    },
    /// Say what is wrong with this node and its machine, and what to do about it; exit status 1 when there is something
    ///
    /// Works on a running node, which is asked itself, and on a stopped one, whose data directory is read and left as it
    /// is. Sends nothing to devices.
    Doctor,
    /// Collect what somebody needs who helps from afar, as a .tar.zst
    ///
    /// In it: what doctor says, status, members, plan and units, reachability, segments, the settings without comments
    /// and secrets, metrics, the last lines of this node's log, audit, events, versions of profiles, and every device's
    /// model, firmware, state, counters and supplies. Not in it: passwords, communities, tokens, keys, addresses of
    /// webhooks; and, unless --with-devices is given, the devices' addresses, serial numbers, hardware addresses, names,
    /// locations, asset numbers and displays. Segments and the nodes' own addresses are in it, and log lines may name
    /// addresses of devices. manifest.json lists every file. Works on a stopped node, too, with what its directory tells.
    Bundle {
        /// Written whole or not at all, readable to its owner alone
        file: PathBuf,
        /// With what identifies devices, too
        #[arg(long)]
        with_devices: bool,
        /// Take the place of a file that is there
        #[arg(long)]
        force: bool,
    },
    /// Write everything that the cluster knows to a file, from a running node
    Backup {
        /// Written whole or not at all, readable to its owner alone
        file: PathBuf,
        /// Protects the cluster's secrets in the file, or @FILE; without it whoever has the file has them
        #[arg(long, value_name = "PASSPHRASE")]
        passphrase: Option<SecretText>,
    },
    /// Make an empty --data-dir the first node of the cluster in a backup; then start it with `quire node`
    ///
    /// The cluster goes on under its name, with its devices, history and settings. Other nodes join it anew, and it is
    /// enrolled anew at the Web Admin, which drops what it has already.
    Restore(Box<Restore>),
}

/// `quire restore`.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// What `quire backup` wrote
    pub(crate) file: PathBuf,
    /// The one that the backup was written with, or @FILE
    #[arg(long, value_name = "PASSPHRASE")]
    pub(crate) passphrase: Option<SecretText>,
    /// The node's name [default: the host's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where the node stands [default: default]
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// Where other nodes will reach it [default: 0.0.0.0:7440]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// The address that it tells others, where it differs from --listen
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) advertise: Option<String>,
}

/// `quire token`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Print a token that admits one node
    Create {
        /// How long it is good for
        #[arg(long, default_value = "24h", value_parser = duration, value_name = "TIME")]
        ttl: Duration,
    },
    /// Those that were made, without their secrets
    List,
    /// Take a token back that nobody has joined with
    Revoke {
        /// As `token list` prints it
        id: String,
    },
}

/// `quire rotate`.
#[derive(Debug, Subcommand)]
pub(crate) enum RotateCommand {
    /// Seal all secrets with a new cluster key, which every living node gets first
    Key,
    /// Give every node a certificate of a new CA; the old one counts no longer once all have one
    Ca,
}

/// `quire api-token`.
#[derive(Debug, Subcommand)]
pub(crate) enum ApiTokenCommand {
    /// Print a token for the HTTP API and the console
    Create {
        /// What its holder may do
        #[arg(long, value_parser = ["viewer", "operator", "admin"])]
        role: String,
    },
    /// Those that count, without their secrets
    List,
    /// Take a token back: it counts no longer, on no node
    Revoke {
        /// As `api-token list` prints it
        id: String,
    },
}

/// `quire segments`.
#[derive(Debug, Subcommand)]
pub(crate) enum SegmentsCommand {
    /// Search a found segment
    Accept {
        /// As `segments` prints it
        prefix: IpNet,
        /// In this zone only
        #[arg(long)]
        zone: Option<String>,
        /// Mean it, although the prefix is larger than a /12
        #[arg(long)]
        confirm_large: bool,
    },
    /// Leave a found segment alone, whatever the settings accept
    Refuse {
        /// As `segments` prints it
        prefix: IpNet,
        /// In this zone only
        #[arg(long)]
        zone: Option<String>,
    },
    /// Take a decision back: the settings decide
    Reset {
        /// As `segments` prints it
        prefix: IpNet,
        /// In this zone only
        #[arg(long)]
        zone: Option<String>,
    },
    /// Ask links and routers anew, now
    Explore,
}

/// `quire device`.
#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Print a device with its evidence, meters and events
    Show {
        /// Its id
        device: String,
    },
    /// Type name, location or asset; an empty value gives the field back to the readings
    Set {
        /// Its id
        device: String,
        /// Such as location="Room 7"; certificate= forgets the pinned certificate of its web server
        #[arg(required = true, value_name = "FIELD=VALUE")]
        values: Vec<String>,
    },
}

/// `quire settings`.
#[derive(Debug, Subcommand)]
pub(crate) enum SettingsCommand {
    /// Print the settings in force, secrets left out
    Show,
    /// Check a file and put it in force: all of it or nothing
    Apply {
        /// TOML
        file: PathBuf,
    },
    /// Check a file and change nothing
    Validate {
        /// TOML
        file: PathBuf,
    },
}

/// `quire script`.
#[derive(Debug, Subcommand)]
pub(crate) enum ScriptCommand {
    /// Those in force, the built-in ones included
    List,
    /// Check a profile, try it on one node, then put it in force on every node
    Put {
        /// Rhai, its name and version in its first lines
        file: PathBuf,
        /// In force everywhere at once, without a trial
        #[arg(long)]
        now: bool,
    },
    /// Run a profile on a recorded device: the reading, what it changes, what it costs
    ///
    /// Needs no node. The difference is to the profiles that ship with the program, or with --data-dir to
    /// those in force on that node.
    Test {
        /// Rhai
        file: PathBuf,
        /// The device's answers, as .snmprec
        #[arg(long, value_name = "FILE")]
        recording: PathBuf,
        /// The device's pages, each at its path
        #[arg(long, value_name = "DIR")]
        web: Option<PathBuf>,
    },
    /// Take a profile out of force; a built-in one of its name takes over
    Remove {
        /// As `script list` prints it
        name: String,
    },
}

/// `quire enroll`.
#[derive(Debug, Args)]
pub(crate) struct Enroll {
    /// The Web Admin
    #[arg(long, value_name = "https://HOST:PORT")]
    pub(crate) upstream: String,
    /// The one-time code that `quire-admin site add` printed, or @FILE
    #[arg(long, value_name = "CODE")]
    pub(crate) code: SecretText,
    /// The pin that `quire-admin site add` printed
    #[arg(long, value_name = "sha256:HEX")]
    pub(crate) pin: String,
}

/// `quire discover`.
#[derive(Debug, Args)]
pub(crate) struct Discover {
    /// Where to look: 10.1.0.0/24, 10.1.0.5-90, 10.1.0.5, each with an optional :PORT
    #[arg(required_unless_present_any = ["hops", "local"], value_name = "TARGET")]
    pub(crate) targets: Vec<Target>,
    /// SNMP port of targets that name none
    #[arg(long, default_value_t = 161, value_name = "PORT")]
    pub(crate) port: u16,
    /// SNMP community, or @FILE; repeatable, tried in order
    #[arg(long, default_value = "public")]
    pub(crate) community: Vec<SecretText>,
    /// Speak SNMPv1 only
    #[arg(long, conflicts_with = "v2c")]
    pub(crate) v1: bool,
    /// Speak SNMPv2c only (without either: v2c, then v1 for those that stay silent)
    #[arg(long)]
    pub(crate) v2c: bool,
    /// SNMPv3 user name
    #[arg(long, value_name = "USER")]
    pub(crate) v3_user: Option<String>,
    /// SNMPv3 authentication protocol
    #[arg(long, requires = "v3_auth_pass", value_parser = ["md5", "sha", "sha224", "sha256", "sha384", "sha512"], value_name = "PROTOCOL")]
    pub(crate) v3_auth: Option<String>,
    /// SNMPv3 authentication password, or @FILE
    #[arg(long, requires = "v3_auth", value_name = "PASSWORD")]
    pub(crate) v3_auth_pass: Option<SecretText>,
    /// SNMPv3 privacy protocol
    #[arg(long, requires_all = ["v3_priv_pass", "v3_auth"], value_parser = ["des", "aes", "aes192", "aes256"], value_name = "PROTOCOL")]
    pub(crate) v3_priv: Option<String>,
    /// SNMPv3 privacy password, or @FILE
    #[arg(long, requires = "v3_priv", value_name = "PASSWORD")]
    pub(crate) v3_priv_pass: Option<SecretText>,
    /// Never contacted: 10.1.9.0/24, 10.1.0.5-90 or 10.1.0.5; repeatable
    #[arg(long, value_name = "TARGET")]
    pub(crate) exclude: Vec<Exclusion>,
    /// Also search this machine's own links and what its gateways' tables name, this many routers away
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=32))]
    pub(crate) hops: Option<u32>,
    /// Also list the printers on this machine's own USB and parallel ports
    #[arg(long)]
    pub(crate) local: bool,
    /// Packets a second; 0 is unlimited
    #[arg(long, default_value_t = 500, value_name = "PPS")]
    pub(crate) rate: u32,
    /// How long to wait for an answer before asking again
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "TIME")]
    pub(crate) timeout: Duration,
    /// How often to ask again
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(crate) retries: u8,
    /// Port of the devices' own pages; repeatable. Named ones are also asked where SNMP is silent [default: 80, 443 and
    /// 8080 of devices that answer SNMP and leave their serial, total or supplies open]
    #[arg(long, value_name = "PORT", conflicts_with = "no_http")]
    pub(crate) http_port: Vec<u16>,
    /// Do not read the devices' own pages
    #[arg(long)]
    pub(crate) no_http: bool,
    /// Do not ask over IPP
    #[arg(long)]
    pub(crate) no_ipp: bool,
    /// Only find devices, do not read their meters
    #[arg(long)]
    pub(crate) no_read: bool,
    /// Send nothing; print what would be sent
    #[arg(long)]
    pub(crate) explain: bool,
    /// Write what was sent and received to this file, as one JSON object
    #[arg(long, value_name = "FILE")]
    pub(crate) summary: Option<PathBuf>,
}

/// `quire node`.
#[derive(Debug, Args)]
pub(crate) struct Node {
    /// The node's name, one of its kind in the cluster [default: the host's name]
    #[arg(long)]
    name: Option<String>,
    /// Where the node stands: a VM host, a building, a site [default: default]
    #[arg(long)]
    zone: Option<String>,
    /// Where other nodes reach it [default: 0.0.0.0:7440]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// The address that it tells others, where it differs from --listen
    #[arg(long, value_name = "ADDR:PORT")]
    advertise: Option<String>,
    /// Console and HTTP API [default: 127.0.0.1:7480]
    #[arg(long, value_name = "ADDR:PORT")]
    console: Option<SocketAddr>,
    /// The options of this command as TOML: name, zone, listen, advertise, console
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// First start of the first node: make a cluster of this name
    #[arg(long, value_name = "NAME", conflicts_with = "join")]
    init: Option<String>,
    /// First start of any other node: a member of the cluster
    #[arg(long, value_name = "ADDR:PORT", requires = "token")]
    join: Option<String>,
    /// The token that `quire token create` printed on a member, or @FILE
    #[arg(long, requires = "join")]
    token: Option<SecretText>,
    /// Vote and keep the log, collect nothing
    #[arg(long)]
    witness: bool,
    /// How `quire recover` lets a running node start again
    #[arg(long, hide = true, conflicts_with_all = ["init", "join"])]
    recover: bool,
}

/// The options of `quire node`, the file of `--config` below the flags.
pub(crate) fn start(data_dir: Option<PathBuf>, node: Node) -> anyhow::Result<NodeOptions> {
    let data_dir = data_dir.ok_or_else(|| Usage("--data-dir is missing".to_owned()))?;
    let file = node.config.as_deref().map(crate::config::ConfigFile::read).transpose()?.unwrap_or_default();
    Ok(NodeOptions {
        data_dir,
        name: node.name.or(file.name),
        zone: node.zone.or(file.zone),
        listen: node.listen.or(file.listen),
        advertise: node.advertise.or(file.advertise),
        console: node.console.or(file.console),
        init: node.init,
        join: node.join.zip(node.token.map(SecretText::into_inner)),
        witness: node.witness,
        recover: node.recover,
    })
}

/// Lets `QUIRE_<OPTION>` stand in for every long option.
pub(crate) fn with_environment(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_long() {
        Some(long) if !matches!(long, "help" | "version") => {
            let variable = format!("QUIRE_{}", long.replace('-', "_").to_uppercase());
            arg.env(variable).hide_env(true)
        }
        _ => arg,
    });
    command.mut_subcommands(with_environment)
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_| format!("`{text}` is not a time: expected 500ms, 2s, 5m, 24h or 7d"))?;
    let millis = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("`{unit}` is not a unit of time: expected ms, s, m, h or d")),
    };
    number
        .checked_mul(millis)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{text}` is too long a time"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        with_environment(Arguments::command()).debug_assert();
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1_500)));
        assert!(duration("2 weeks").is_err());
        assert!(duration("99999999999999999999s").is_err());
        assert!(duration("99999999999999999d").is_err());
    }
}
