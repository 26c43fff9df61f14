use crate::testing::Mesh;
#[test]
fn smoke() {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    let r = mesh.authorise(&pool);
    mesh.settle(&pool, r);
    let receipt = mesh.receipt(r);
    eprintln!("receipt {} bytes", receipt.to_text().len());
    receipt.verify(mesh.fleet.cluster()).unwrap();
}
