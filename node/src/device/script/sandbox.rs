//! The sandbox: a Rhai engine that can count, compare and cut text, and nothing else, under limits.
//!
//! It must never have a clock, a file, a socket, a module or `eval`. Time is up when the shell cancels the token that
//! the run was given. What a script asks of its device goes through `host`.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use quire_proto::oid::Oid;
use quire_proto::reading::Reading;
use rhai::packages::{
    ArithmeticPackage, BasicArrayPackage, BasicBlobPackage, BasicFnPackage, BasicIteratorPackage,
    BasicMapPackage, BasicMathPackage, BasicStringPackage, BitFieldPackage, LogicPackage, MoreStringPackage,
    Package as _,
};
use rhai::{
    AST, Array, Blob, Dynamic, Engine, EvalAltResult, FnPtr, ImmutableString, Map, Module, OptimizationLevel,
    Position, Scope,
};
use tokio_util::sync::CancellationToken;

use super::host::{self, Host};
use super::{Device, Known, Profile};

/// Text in one value, octets: the longest page of a known printer has some 100 KB.
const STRING: usize = 256 * 1024;
/// Elements of one array: a table of counters has some hundred rows.
const ARRAY: usize = 8 * 1024;
/// Entries of one map.
const MAP: usize = 1024;
/// Variables alive at a time.
const VARIABLES: usize = 256;
/// What the variables of one call may hold together, octets. The limits above do not see what is put in by index
/// (`m[k] = s`), so all of it is added up at every `LOOK`th use of a variable: a script takes at most `CALLS` times this
/// and `LOOK` strings more, some 150 MB where it tries, 1 MB where it does not.
const HELD: usize = 8 << 20;
const LOOK: usize = 64;
/// Calls inside calls. In an unoptimised build a level takes some 20 KB of stack, a blocking thread has 2 MB.
const CALLS: usize = 16;
/// Expressions inside expressions, outside and inside of functions.
const NESTING: (usize, usize) = (32, 24);
/// Functions of one script.
const FUNCTIONS: usize = 64;

/// What one run may use. Reaching any of them ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Steps of the interpreter; a million takes about 50 ms.
    pub operations: u64,
    /// SNMP questions and pages.
    pub requests: u32,
    /// Octets received; what `html` and `xml` take apart counts as well.
    pub bytes: usize,
    /// Wall clock, waiting for the device included; kept by the shell.
    pub seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { operations: 1_000_000, requests: 64, bytes: 2 << 20, seconds: 20 }
    }
}

/// What a script ran out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Steps.
    Operations,
    /// Calls inside calls.
    Depth,
    /// Text, arrays, maps.
    Memory,
    /// Questions.
    Requests,
    /// Octets.
    Bytes,
    /// Wall clock.
    Seconds,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Budget::Operations => "operations",
            Budget::Depth => "call depth",
            Budget::Memory => "memory",
            Budget::Requests => "requests",
            Budget::Bytes => "bytes",
            Budget::Seconds => "seconds",
        })
    }
}

/// Why a script brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// A budget was exceeded.
    #[error("the budget of {0} is used up")]
    Budget(Budget),
    /// The script itself failed, or said what cannot be.
    #[error("{0}")]
    Script(String),
}

/// What a run took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Steps of the interpreter.
    pub operations: u64,
    /// SNMP questions and pages.
    pub requests: u32,
    /// Octets received and taken apart.
    pub bytes: usize,
}

/// How a run went.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The reading with what the script added.
    pub(crate) result: Result<Reading, Failed>,
    pub(crate) cost: Cost,
    /// The instances that it asked for, and whether they were there.
    pub(crate) asked: Vec<(Oid, bool)>,
    /// What it logged.
    pub(crate) log: Vec<String>,
}

/// Compiles a source; the text of an error is for its author.
pub(super) fn compile(source: &str) -> Result<AST, String> {
    // A variable to the compiler, so that it is known and its value is not built in; a constant when it runs.
    let mut scope = Scope::new();
    scope.push("reading", Dynamic::UNIT);
    bare().compile_with_scope(&scope, source).map_err(|error| error.to_string())
}

/// Runs a profile on what is known of a device so far. Blocks; ends when a limit is reached or `stop` is cancelled.
pub(crate) fn run(
    profile: &Profile,
    reading: &Reading,
    known: Known,
    device: Box<dyn Device>,
    limits: Limits,
    stop: &CancellationToken,
) -> Run {
    let host = Arc::new(Mutex::new(Host::new(reading, known, device, limits, stop.clone())));
    let operations = Arc::new(AtomicU64::new(0));
    let mut engine = bare();
    engine.set_max_operations(limits.operations);
    host::register(&mut engine, &host);
    let (counted, token) = (Arc::clone(&operations), stop.clone());
    engine.on_progress(move |count| {
        counted.store(count, Ordering::Relaxed);
        token.is_cancelled().then_some(Dynamic::UNIT)
    });
    weigh(&mut engine);
    let mut scope = Scope::new();
    scope.push_constant("reading", host::reading_map(reading));
    let ended = engine.run_ast_with_scope(&mut scope, &profile.program);
    drop(scope);
    drop(engine);
    let mut host = host.lock().unwrap_or_else(PoisonError::into_inner);
    let result = match ended {
        // A budget that a script caught and went on from stays exceeded.
        Ok(()) => {
            host.exhausted().map_or_else(|| Ok(host.take_draft()), |budget| Err(Failed::Budget(budget)))
        }
        Err(error) => Err(failed(&error, host.exhausted(), stop)),
    };
    let cost = Cost { operations: operations.load(Ordering::Relaxed), ..host.cost() };
    Run { result, cost, asked: host.asked(), log: host.take_log() }
}

fn failed(error: &EvalAltResult, exhausted: Option<Budget>, stop: &CancellationToken) -> Failed {
    if let Some(budget) = exhausted {
        return Failed::Budget(budget);
    }
    match error.unwrap_inner() {
        EvalAltResult::ErrorTerminated(..) if stop.is_cancelled() => Failed::Budget(Budget::Seconds),
        EvalAltResult::ErrorTooManyOperations(_) => Failed::Budget(Budget::Operations),
        EvalAltResult::ErrorStackOverflow(_) => Failed::Budget(Budget::Depth),
        EvalAltResult::ErrorDataTooLarge(..) | EvalAltResult::ErrorTooManyVariables(_) => {
            Failed::Budget(Budget::Memory)
        }
        _ => Failed::Script(error.to_string()),
    }
}

/// Built once: a package is some hundred functions, which take longer to register than most profiles to run.
static PACKAGES: LazyLock<[Arc<Module>; 11]> = LazyLock::new(|| {
    [
        LogicPackage::new().as_shared_module(),
        ArithmeticPackage::new().as_shared_module(),
        BasicMathPackage::new().as_shared_module(),
        BitFieldPackage::new().as_shared_module(),
        BasicStringPackage::new().as_shared_module(),
        MoreStringPackage::new().as_shared_module(),
        BasicIteratorPackage::new().as_shared_module(),
        BasicFnPackage::new().as_shared_module(),
        BasicArrayPackage::new().as_shared_module(),
        BasicBlobPackage::new().as_shared_module(),
        BasicMapPackage::new().as_shared_module(),
    ]
});

/// The language without the host: no time, no modules, no `eval`, no printing.
fn bare() -> Engine {
    let mut engine = Engine::new_raw();
    for package in PACKAGES.iter() {
        engine.register_global_module(package.clone());
    }
    // The core package stays out: its `sleep` is there even without `no_time`, and nothing here could wake it. `this`
    // is no variable, so that what a method puts into it could not be weighed.
    for word in ["eval", "print", "debug", "sleep", "timestamp", "import", "export", "this"] {
        engine.disable_symbol(word);
    }
    engine
        .set_max_call_levels(CALLS)
        .set_max_expr_depths(NESTING.0, NESTING.1)
        .set_max_string_size(STRING)
        .set_max_array_size(ARRAY)
        .set_max_map_size(MAP)
        .set_max_variables(VARIABLES)
        .set_max_functions(FUNCTIONS)
        .set_optimization_level(OptimizationLevel::None)
        .set_allow_looping(true)
        .set_strict_variables(true);
    engine
}

/// Looks now and then at all that the variables hold, and ends the script when it is too much.
#[expect(deprecated, reason = "not deprecated, its authors mark it as likely to change")]
fn weigh(engine: &mut Engine) {
    let uses = AtomicUsize::new(0);
    engine.on_var(move |_, _, context| {
        if uses.fetch_add(1, Ordering::Relaxed) % LOOK == LOOK - 1 {
            let mut left = HELD;
            let fits = context.scope().iter_raw().all(|(_, _, value)| take(value, &mut left, 0));
            if !fits {
                return Err(Box::new(EvalAltResult::ErrorDataTooLarge("memory".to_owned(), Position::NONE)));
            }
        }
        Ok(None)
    });
}

/// Takes the weight of a value off what is left; false when there is not enough, or when it nests too deep: what nests
/// for ever would overflow the stack of whoever drops it.
fn take(value: &Dynamic, left: &mut usize, depth: usize) -> bool {
    const EACH: usize = 32;
    const DEEPEST: usize = 64;
    let own = match value.read_lock::<ImmutableString>() {
        Some(text) => text.len(),
        None => value.read_lock::<Blob>().map_or(0, |blob| blob.len()),
    };
    match left.checked_sub(own + EACH) {
        Some(rest) if depth < DEEPEST => *left = rest,
        Some(_) | None => return false,
    }
    if let Some(items) = value.read_lock::<Array>() {
        return items.iter().all(|item| take(item, left, depth + 1));
    }
    if let Some(entries) = value.read_lock::<Map>() {
        return entries.values().all(|entry| take(entry, left, depth + 1));
    }
    let closure = value.read_lock::<FnPtr>();
    closure.is_none_or(|closure| closure.iter_curry().all(|held| take(held, left, depth + 1)))
}
