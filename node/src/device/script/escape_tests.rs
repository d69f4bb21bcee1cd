//! One test for each way out of the sandbox that somebody may try, and the property that every script ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use quire_proto::reading::{Counters, Reading, Via};
use tokio_util::sync::CancellationToken;

use super::sandbox::{self, Budget, Failed, Limits, Run};
use super::{Device, Known, Page, Profile, Recording, WebMiss, WebPath};
use crate::device::Miss;
use crate::snmp::{Request, Response};

const HEAD: &str = "//! name: try\n//! version: 1\n//! match: family brother\n";

/// A recording that counts what really reached it.
struct Watched {
    recording: Recording,
    asked: Arc<AtomicUsize>,
    page: usize,
}

impl Device for Watched {
    fn ask(&mut self, request: &Request) -> Result<Response, Miss> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.recording.ask(request)
    }

    fn fetch(&mut self, path: &WebPath, most: usize) -> Result<Page, WebMiss> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.page > most {
            return Err(WebMiss::TooLong);
        }
        let body = "x".repeat(self.page);
        Ok(Page { url: format!("http://device{}", path.as_str()), status: 200, body, via: Via::Http })
    }

    fn via(&self) -> Via {
        Via::SnmpV2c
    }
}

struct Tried {
    run: Run,
    asked: usize,
}

fn limits() -> Limits {
    Limits { operations: 100_000, requests: 8, bytes: 64 << 10, seconds: 5 }
}

fn reading() -> Reading {
    Reading { counters: Counters { total: Some(7), ..Counters::default() }, ..Reading::default() }
}

fn attempt(body: &str, page: usize, stop: &CancellationToken) -> Tried {
    let profile = Profile::parse(&format!("{HEAD}{body}")).unwrap_or_else(|error| panic!("{error}: {body}"));
    let asked = Arc::new(AtomicUsize::new(0));
    let recording = Recording::parse("1.3.6.1.2.1.1.5.0|4|hello\n1.3.6.1.4.1.1.1|2|-2\n1.3.6.1.4.1.1.2|2|9");
    let device = Box::new(Watched { recording, asked: Arc::clone(&asked), page });
    let run = sandbox::run(&profile, &reading(), Known::default(), device, limits(), stop);
    Tried { run, asked: asked.load(Ordering::SeqCst) }
}

fn run(body: &str) -> Tried {
    attempt(body, 100, &CancellationToken::new())
}

fn budget(body: &str) -> Budget {
    match run(body).run.result {
        Err(Failed::Budget(budget)) => budget,
        other => panic!("{body}: {other:?}"),
    }
}

/// What the script's author is told; also where the source is refused before it ever runs.
fn refusal(body: &str) -> String {
    match Profile::parse(&format!("{HEAD}{body}")) {
        Err(error) => error.to_string(),
        Ok(_) => match run(body).run.result {
            Err(Failed::Script(text)) => text,
            other => panic!("{body}: {other:?}"),
        },
    }
}

#[test]
fn endless_loops_end() {
    for body in [
        "loop { }",
        "while true { }",
        "let i = 0; do { i += 1; } until false;",
        "for i in 0..9223372036854775807 { let x = i; }",
    ] {
        assert_eq!(budget(body), Budget::Operations, "{body}");
    }
}

#[test]
fn a_loop_cannot_catch_its_end() {
    assert_eq!(budget("loop { try { loop { } } catch { } }"), Budget::Operations);
}

#[test]
fn recursion_ends() {
    assert_eq!(budget("fn f(n) { f(n + 1) } f(0);"), Budget::Depth);
    assert_eq!(budget("fn f(n) { g(n) } fn g(n) { 1 + f(n) } f(0);"), Budget::Depth);
    let closure = "let f = |me, n| me.call(me, n + 1); f.call(f, 0);";
    assert_eq!(budget(closure), Budget::Depth);
}

#[test]
fn expressions_have_a_depth() {
    let deep = format!("let x = {}1{};", "(1+".repeat(5_000), ")".repeat(5_000));
    assert!(refusal(&deep).contains("complexity"), "{}", refusal(&deep));
    let blocks = format!("{}{}", "if true {".repeat(5_000), "}".repeat(5_000));
    assert!(refusal(&blocks).contains("complexity"));
    let arrays = format!("let x = {}{};", "[".repeat(5_000), "]".repeat(5_000));
    assert!(refusal(&arrays).contains("complexity"));
}

#[test]
fn memory_does_not_grow() {
    assert_eq!(budget("let a = []; loop { a.push(1); }"), Budget::Memory);
    assert_eq!(budget("let a = [1]; loop { a += a; }"), Budget::Memory);
    let big = "let s = \"x\"; s.pad(100000, 'x'); let i = 0;";
    for put_in in [
        "let m = #{}; loop { i += 1; m[`k${i}`] = s + i; }",
        "let a = []; a.pad(8000, 0); loop { i += 1; a[i] = s + i; }",
        "let a = [#{}, []]; loop { i += 1; a[0][`k${i}`] = s + i; }",
        "let m = #{}; fn f(m, s, i) { m[`k${i}`] = s + i; m } loop { i += 1; m = f(m, s, i); }",
        "let f = |s| s; loop { i += 1; f = f.curry(s + i); }",
        "let m = #{}; let f = || { i += 1; m[`k${i}`] = s + i; }; loop { f.call(); }",
    ] {
        assert_eq!(budget(&format!("{big} {put_in}")), Budget::Memory, "{put_in}");
    }
    assert!(refusal("fn f() { this[`x`] = 1; } let m = #{}; m.f();").contains("this"));
    assert_eq!(budget("let b = blob(); loop { b.push(1); b += b; }"), Budget::Memory);
    assert_eq!(budget("let a = []; a.pad(1000000000, 0);"), Budget::Memory);
    assert_eq!(budget("let b = blob(1000000000, 0);"), Budget::Memory);
}

#[test]
fn values_do_not_nest_for_ever() {
    for body in [
        "let a = []; loop { a = [a]; }",
        "let m = #{}; loop { m = #{ m: m }; }",
        "let f = |x| x; loop { f = f.curry(f); }",
        "let a = []; let f = || { a = [a]; }; loop { f.call(); }",
    ] {
        assert_eq!(budget(body), Budget::Memory, "{body}");
    }
}

#[test]
fn strings_do_not_explode() {
    assert_eq!(budget("let s = \"x\"; loop { s += s; }"), Budget::Memory);
    assert_eq!(budget("let s = \"x\"; loop { s = `${s}${s}`; }"), Budget::Memory);
    assert_eq!(budget("let s = \"x\"; s.pad(1000000000, 'x');"), Budget::Memory);
    assert_eq!(budget("let s = \"xxxxxxxx\"; loop { s.replace(\"x\", \"xxxxxxxx\"); }"), Budget::Memory);
    let nested = "let s = \"x\"; s.pad(100000, 'x'); let a = []; loop { a.push(s); }";
    assert_eq!(budget(nested), Budget::Memory);
}

#[test]
fn nothing_is_evaluated_or_imported() {
    for body in ["eval(\"1\");", "let f = Fn(\"eval\"); f.call(\"1\");", "import \"os\" as os;", "export x;"]
    {
        let text = refusal(body);
        assert!(!text.is_empty(), "{body}");
    }
    assert!(refusal("eval(\"1\");").contains("eval"));
    assert!(refusal("import \"os\" as os;").contains("import"));
}

#[test]
fn files_processes_and_sockets_have_no_names() {
    for name in [
        "open_file",
        "open",
        "read_file",
        "write_file",
        "remove_file",
        "exec",
        "system",
        "spawn",
        "env",
        "connect",
        "tcp_connect",
        "socket",
        "set",
        "put",
        "http_post",
        "exit",
    ] {
        let text = refusal(&format!("{name}(\"/etc/passwd\");"));
        assert!(text.contains("Function not found") || text.contains("reserved"), "{name}: {text}");
    }
    assert!(refusal("let x = std::fs::read(\"/etc/passwd\");").len() > 3);
}

#[test]
fn there_is_no_time() {
    for body in [
        "sleep(100);",
        "sleep(0.5);",
        "let t = timestamp();",
        "let f = Fn(\"sleep\"); f.call(100);",
        "call(\"sleep\", 1);",
    ] {
        assert!(!refusal(body).is_empty(), "{body}");
    }
}

#[test]
fn nothing_is_printed() {
    assert!(refusal("print(\"x\");").contains("print"));
    assert!(refusal("debug(\"x\");").contains("debug"));
}

#[test]
fn no_other_host_is_asked() {
    for path in [
        "http://10.0.0.9/",
        "https://10.0.0.9/x",
        "//10.0.0.9/x",
        "/\\\\10.0.0.9/x",
        "\\\\10.0.0.9",
        "10.0.0.9/x",
        "..@10.0.0.9/",
        "/..//10.0.0.9",
        "@10.0.0.9/",
        "/../../x",
        "/%2e%2e/x",
        "/%2f10.0.0.9/",
        "/a/%2E./b",
        "/x y",
        "/x\\u{0}",
        "/x\\r\\nHost: other",
        "file:///etc/passwd",
        "",
        "javascript:1",
        "/é",
    ] {
        let text = refusal(&format!("http_get(\"{}\");", path.replace("\\\\", "\\\\\\\\")));
        assert!(text.contains("no path") || text.contains("escape"), "{path}: {text}");
        let tried = run(&format!("try {{ http_get(`{}`); }} catch {{ }}", path.replace("\\\\", "\\")));
        assert_eq!(tried.asked, 0, "{path} reached the device");
    }
    assert_eq!(run("http_get(\"/general/status.html?page=1&x=%20\");").asked, 1);
}

#[test]
fn a_path_never_leaves_its_host() {
    let base = reqwest::Url::parse("http://127.0.0.1:8080/").unwrap();
    proptest!(|(text in "[/\\\\.@:a-z0-9%?#&=\\-]{0,24}")| {
        if let Some(path) = WebPath::new(&text) {
            let url = base.join(path.as_str()).unwrap();
            prop_assert_eq!((url.host_str(), url.port(), url.scheme()), (Some("127.0.0.1"), Some(8080), "http"));
        }
    });
}

#[test]
fn requests_are_counted() {
    let ask = "let i = 0; loop { i += 1; try { get(`1.3.6.1.4.1.1.${i}`); } catch { } }";
    let tried = run(ask);
    assert_eq!(tried.run.result, Err(Failed::Budget(Budget::Requests)));
    assert_eq!((tried.asked, tried.run.cost.requests), (8, 8));
    assert_eq!(budget("loop { http_get(\"/\"); }"), Budget::Requests);
    let known = run("for i in 0..100 { get(\"1.3.6.1.2.1.1.5.0\"); get(\"1.3.6.1.2.1.1.99.0\"); }");
    assert_eq!(known.asked, 2, "what was asked once is known, absence included");
}

#[test]
fn bytes_are_counted() {
    let stop = CancellationToken::new();
    let two_pages = attempt("http_get(\"/a\"); http_get(\"/b\");", 40 << 10, &stop);
    assert_eq!(two_pages.run.result, Err(Failed::Budget(Budget::Bytes)));
    let caught = attempt("try { http_get(\"/a\"); http_get(\"/b\"); } catch { }", 40 << 10, &stop);
    assert_eq!(caught.run.result, Err(Failed::Budget(Budget::Bytes)), "a script cannot catch it");
    let chewing = "let p = html(http_get(\"/a\").body); loop { p.select(\"a\"); }";
    assert_eq!(attempt(chewing, 10 << 10, &stop).run.result, Err(Failed::Budget(Budget::Bytes)));
}

#[test]
fn time_is_up_when_the_shell_says_so() {
    let stop = CancellationToken::new();
    stop.cancel();
    assert_eq!(attempt("loop { }", 1, &stop).run.result, Err(Failed::Budget(Budget::Seconds)));
    let tried = attempt("get(\"1.3.6.1.2.1.1.5.0\");", 1, &stop);
    assert_eq!(tried.run.result, Err(Failed::Budget(Budget::Seconds)));
    assert_eq!(tried.asked, 0);
}

#[test]
fn sentinels_stop_at_the_door() {
    for (body, why) in [
        ("meter(\"total\", -2, \"1.3.6.1.4.1.1.1\");", "is no count"),
        ("meter(\"total\", \"12\", \"1.3.6.1.4.1.1.1\");", "is no count"),
        ("meter(\"total\", 1.5, \"1.3.6.1.4.1.1.1\");", "is no count"),
        ("meter(\"total\", (), \"1.3.6.1.4.1.1.1\");", "is no count"),
        ("meter(\"pages\", 1, \"1.3.6.1.4.1.1.1\");", "is no meter"),
        ("supply(#{ name: \"T\", kind: \"toner\", percent: 101, source: \"1.3.6.1.4.1.1.1\" });", "0 to 100"),
        (
            "supply(#{ name: \"T\", kind: \"toner\", level: -100, source: \"1.3.6.1.4.1.1.1\" });",
            "is no amount",
        ),
        ("supply(#{ name: \"T\", kind: \"cheese\", source: \"1.3.6.1.4.1.1.1\" });", "is no kind"),
        ("supply(#{ nmae: \"T\", source: \"1.3.6.1.4.1.1.1\" });", "is unknown"),
        ("status(\"fine\", \"1.3.6.1.4.1.1.1\");", "is no status"),
        ("fact(\"serial\", \"N/A\", \"1.3.6.1.4.1.1.1\");", "is no serial"),
        ("fact(\"maker\", \"X\", \"1.3.6.1.4.1.1.1\");", "is no fact"),
    ] {
        let text = refusal(&format!("get(\"1.3.6.1.4.1.1.1\"); {body}"));
        assert!(text.contains(why), "{body}: {text}");
    }
}

#[test]
fn a_value_names_where_it_was_heard() {
    for source in ["", "1.3.6.1.4.1.1.9", "somewhere", "/page", "1.3.6.1.4.1.1.1+1.3.6.1.4.1.1.9"] {
        let text = refusal(&format!("get(\"1.3.6.1.4.1.1.1\"); meter(\"total\", 1, \"{source}\");"));
        assert!(text.contains("source"), "{source}: {text}");
    }
}

#[test]
fn a_script_that_fails_leaves_no_trace() {
    let body = "get(\"1.3.6.1.4.1.1.2\"); meter(\"total\", 9, \"1.3.6.1.4.1.1.2\"); throw \"no\";";
    assert!(matches!(run(body).run.result, Err(Failed::Script(_))));
    let good = run(body.strip_suffix("throw \"no\";").unwrap()).run.result.unwrap();
    assert_eq!(good.counters.total, Some(9));
}

#[test]
fn a_script_cannot_change_what_it_was_given() {
    assert!(!refusal("reading = 1;").is_empty());
    let tried = run("try { reading.counters.total = 1; } catch { }");
    assert_eq!(tried.run.result.unwrap(), reading());
}

#[test]
fn logs_are_short() {
    let tried = run("for i in 0..1000 { log(\"\\u001b[2J\" + i); }");
    assert_eq!(tried.run.log.len(), 50);
    assert!(tried.run.log.iter().all(|line| !line.contains('\u{1b}')));
}

/// Scripts out of pieces that loop, grow, call and ask.
fn scripts() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("x += 1;".to_owned()),
        Just("s += s + \"y\";".to_owned()),
        Just("a.push(s);".to_owned()),
        Just("a += a;".to_owned()),
        Just("m[s] = a;".to_owned()),
        Just("get(`1.3.6.1.4.1.1.${x}`);".to_owned()),
        Just("walk(\"1.3.6.1.4.1\");".to_owned()),
        Just("s = http_get(\"/p\").body;".to_owned()),
        Just("html(s).select(\"p\");".to_owned()),
        Just("f(x);".to_owned()),
        Just("throw x;".to_owned()),
        Just("meter(\"total\", x, \"1.3.6.1.4.1.1.2\");".to_owned()),
    ];
    let body = leaf.prop_recursive(4, 24, 4, |inner| {
        let block = proptest::collection::vec(inner, 1..4).prop_map(|lines| lines.concat());
        prop_oneof![
            block.clone().prop_map(|b| format!("loop {{ {b} }}")),
            block.clone().prop_map(|b| format!("while x < 1000000 {{ {b} }}")),
            block.clone().prop_map(|b| format!("for i in a {{ {b} }}")),
            block.clone().prop_map(|b| format!("try {{ {b} }} catch {{ {b} }}")),
            block.prop_map(|b| format!("if x % 2 == 0 {{ {b} }}")),
        ]
    });
    body.prop_map(|b| {
        format!("fn f(n) {{ f(n + 1) }} let x = 0; let s = \"y\"; let a = [1]; let m = #{{}}; {b}")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_script_ends_within_its_budget(body in scripts()) {
        let tried = run(&body);
        let cost = tried.run.cost;
        prop_assert!(cost.operations <= limits().operations + 1);
        prop_assert!(cost.requests <= limits().requests);
        prop_assert_eq!(tried.asked, cost.requests as usize);
    }
}
