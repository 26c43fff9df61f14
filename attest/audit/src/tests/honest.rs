use crate::replay::Options;
use crate::testing::mirror_of;
use crate::verify::{Verdict, verify};
use quorate_core::testing::Mesh;

#[test]
fn an_honest_log_holds() {
    let mut mesh = Mesh::four();
    let pool = mesh.open_pool();
    for _ in 0..200 {
        let request = mesh.authorise(&pool);
        mesh.settle(&pool, request);
    }
    let dir = tempfile::tempdir().unwrap();
    let sizes: Vec<_> = mesh.certified.keys().copied().skip(5).step_by(37).collect();
    let mirror = mirror_of(&mesh, dir.path(), &sizes);
    let verdict = verify(&mirror, mesh.fleet.cluster(), Options { threads: 2 }, |_, _| ()).unwrap();
    let Verdict::Holds(verified) = verdict else { panic!("{verdict:?}") };
    assert_eq!(verified.summary.authorised, 200);
    assert_eq!(verified.summary.settled, 200);
    assert_eq!(verified.checked.leaves, mesh.log.leaves.len() as u64);
    assert_eq!(
        verified.checked.checkpoints as usize,
        sizes.len() + usize::from(sizes.last() != mesh.certified.keys().last())
    );
    assert_eq!(verified.cosigners.len(), 4);
}
