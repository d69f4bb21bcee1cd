//! `quire`: the node, its command line and its console.

fn main() -> std::process::ExitCode {
    quire_node::cli::main()
}
