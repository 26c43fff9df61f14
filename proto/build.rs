//! Compiles the .proto files with protox: no protoc on the machine.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["quorate/v1/mesh.proto", "quorate/v1/peer.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("quorate.descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    // Their fields are secret: lib.rs says what may be shown of them.
    let secret = [".quorate.v1.RegisterRequest", ".quorate.v1.HoleAnswer"];
    tonic_prost_build::configure().bytes(".").skip_debug(secret).compile_fds(descriptors)?;
    Ok(())
}
