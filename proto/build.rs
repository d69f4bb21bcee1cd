//! Compiles the schema with a compiler in Rust, so that nobody needs protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema");
    let files =
        protox::compile(["reading.proto", "store.proto", "cluster.proto", "upstream.proto"], ["schema"])?;
    let mut builder = tonic_prost_build::configure().bytes(".");
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    builder = builder.build_client(grpc).build_server(grpc);
    builder.compile_fds(files)?;
    Ok(())
}
