//! `quire-admin`: see [`quire_admin::cli`].

fn main() -> std::process::ExitCode {
    quire_admin::cli::main()
}
