//! Opening what a crash tore and what somebody damaged: each byte, each cut, each missing file.

use super::super::frame::{FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, Spot, read_segment_header};
use super::super::journal::{Draft, ENTRY, POINTERS, VOTE};
use super::super::replay::replay;
use super::super::segment::Segment;
use super::*;

/// What opening finds, without starting a writer.
fn reopened(image: &Image) -> Result<(Model, Option<LogId>), LogStoreError> {
    let replayed = replay(&Disk::holding(image.clone()))?;
    let (first, count) = replayed.places.extent();
    let located = replayed.places.locate(first..first + count, usize::MAX)?;
    let entries = located.iter().map(|located| located.read().map(|entry| (entry.log_id.index, entry)));
    let model = Model {
        purged: replayed.pointers.purged,
        entries: entries.collect::<Result<_, _>>()?,
        vote: replayed.pointers.vote,
    };
    Ok((model, replayed.pointers.committed))
}

fn id(name: &str) -> u64 {
    Segment::id_in(name).unwrap()
}

/// Name, begin and end of each frame, in order.
fn frames(image: &Image) -> Vec<(String, usize, usize)> {
    let mut frames = Vec::new();
    let mut next = None;
    for (name, bytes) in image {
        let spot = Spot { salt: read_segment_header(id(name), bytes).unwrap(), segment: id(name) };
        let mut at = SEGMENT_HEADER_BYTES;
        while let Some((sequence, body)) = spot.read(bytes, at, next.unwrap_or(0))
            && next.is_none_or(|next| next == sequence)
        {
            let end = at + FRAME_HEADER_BYTES + body.len();
            frames.push((name.clone(), at, end));
            (at, next) = (end, Some(sequence + 1));
        }
    }
    frames
}

/// A log over several segments, some of them used for the second time.
async fn told(disk: &Disk) -> LogStore {
    let mut store = start(disk).unwrap();
    store.save_vote(&Vote::new(1, 1)).await.unwrap();
    for start in (0..60).step_by(3) {
        store.blocking_append(entries(1, start..start + 3, 150)).await.unwrap();
    }
    store.purge(log_id(1, 1, 40)).await.unwrap();
    store.truncate(log_id(1, 1, 58)).await.unwrap();
    for start in (58..106).step_by(3) {
        store.blocking_append(entries(2, start..start + 3, 150)).await.unwrap();
    }
    store.save_committed(Some(log_id(1, 1, 50))).await.unwrap();
    store.save_vote(&Vote::new_committed(2, 1)).await.unwrap();
    store
}

/// Before and after one more frame: at the head of a segment, or further on.
async fn before_and_after(at_head: bool) -> (Image, Image) {
    let disk = Disk::holding(formatted());
    let mut store = told(&disk).await;
    for index in 106.. {
        let before = disk.image(Survives::OnlySynced);
        store.blocking_append(vec![entry(2, index, 200)]).await.unwrap();
        let after = disk.image(Survives::OnlySynced);
        if (frames(&after).last().unwrap().1 == SEGMENT_HEADER_BYTES) == at_head {
            return (before, after);
        }
    }
    unreachable!()
}

#[tokio::test]
async fn a_frame_torn_anywhere_is_dropped_whole() {
    for at_head in [false, true] {
        let (before, after) = before_and_after(at_head).await;
        let (name, begin, end) = frames(&after).pop().unwrap();
        let (old, new) = (reopened(&before).unwrap(), reopened(&after).unwrap());
        assert_eq!(old.0.entries.len() + 1, new.0.entries.len());
        let (was, is) = (&before[&name], &after[&name]);
        let other = before.values().next().unwrap();
        let shifted = [&vec![0; ALIGN][..], is].concat();
        // what the rest of the file holds instead
        let rests: [(&str, Vec<u8>); 6] = [
            ("as it was", was.clone()),
            ("zeros", vec![0; is.len()]),
            ("ones", vec![0xff; is.len()]),
            ("garbage", (0..is.len()).map(|at| (at * 31 + at / 7) as u8).collect()),
            ("another segment's frames", other.clone()),
            ("this segment's frames elsewhere", shifted),
        ];
        for (rest, bytes) in &rests {
            for cut in begin..=end {
                let mut torn = is[..cut].to_vec();
                torn.extend_from_slice(&bytes[cut..is.len()]);
                let whole = torn[begin..end] == is[begin..end];
                assert!(whole || cut < end);
                let mut image = after.clone();
                image.insert(name.clone(), torn);
                let found = reopened(&image).unwrap_or_else(|e| panic!("cut at {cut}, then {rest}: {e}"));
                assert_eq!(found, if whole { new.clone() } else { old.clone() }, "cut at {cut}, then {rest}");
            }
        }
        // and the file may end early: a longer frame makes its segment longer
        for cut in begin..end {
            let mut image = after.clone();
            image.insert(name.clone(), is[..cut].to_vec());
            assert_eq!(reopened(&image).unwrap(), old, "ends at {cut}");
        }
    }
}

#[tokio::test]
async fn each_flipped_byte_of_what_is_durable_is_refused() {
    for clean_end in [false, true] {
        let disk = Disk::holding(formatted());
        let store = told(&disk).await;
        if clean_end {
            drop(store);
        }
        let image = disk.image(Survives::OnlySynced);
        let all = frames(&image);
        let (last_name, last_begin, last_end) = all.last().unwrap().clone();
        assert!(all.len() > 10 && all.iter().filter(|frame| frame.1 == SEGMENT_HEADER_BYTES).count() > 3);
        let whole = reopened(&image).unwrap();
        let mut dropped = 0;
        for (name, bytes) in &image {
            for at in 0..bytes.len() {
                let mut flipped = image.clone();
                flipped.get_mut(name).unwrap()[at] ^= 1 << (at % 8);
                let found = reopened(&flipped);
                let describe = format!("{name} at {at}: {found:?}");
                let frame = all.iter().find(|(of, begin, end)| of == name && (*begin..*end).contains(&at));
                match (frame, found) {
                    // the last one, which a crash might have torn; after a clean end nothing is in it
                    (Some(_), Ok(found)) => {
                        assert!(*name == last_name && (last_begin..last_end).contains(&at), "{describe}");
                        assert_eq!(found == whole, clean_end, "{describe}");
                        dropped += 1;
                    }
                    (Some((_, begin, _)), Err(LogStoreError::Damaged { segment, offset, what })) => {
                        let oldest = *begin == SEGMENT_HEADER_BYTES && image.keys().next() == Some(name);
                        let said = match oldest {
                            true => "its first frame is lost",
                            false => "a frame is lost that others follow",
                        };
                        assert_eq!(what, said, "{describe}");
                        // the place is where the frame before ended: for a head, in the segment before
                        assert!(
                            (segment, offset) == (id(name), *begin as u64) || *begin == SEGMENT_HEADER_BYTES,
                            "{describe}"
                        );
                    }
                    (None, Err(error)) if at < SEGMENT_HEADER_BYTES => match (at, error) {
                        (0..8, LogStoreError::UnknownFormat { got: None })
                        | (8..12, LogStoreError::UnknownFormat { got: Some(_) })
                        | (12.., LogStoreError::Damaged { offset: 0, .. }) => {}
                        (_, error) => panic!("{describe}: {error}"),
                    },
                    // behind the last frame of its segment
                    (None, Ok(found)) if at >= SEGMENT_HEADER_BYTES => assert_eq!(found, whole, "{describe}"),
                    _ => panic!("{describe}"),
                }
            }
        }
        assert_eq!(dropped, last_end - last_begin);
    }
}

/// Losing the ends of several frames is no torn write: the headers say that they were written one after the other.
#[tokio::test]
async fn damage_to_the_last_bodies_is_refused() {
    let (_, image) = before_and_after(false).await;
    let all = frames(&image);
    let mut damaged = image.clone();
    for (name, _, end) in &all[all.len() - 3..] {
        damaged.get_mut(name).unwrap()[end - 1] ^= 1;
    }
    assert!(matches!(reopened(&damaged), Err(LogStoreError::Damaged { .. })));
    // its twin with the last alone
    let (name, _, end) = all.last().unwrap();
    let mut torn = image.clone();
    torn.get_mut(name).unwrap()[end - 1] ^= 1;
    assert!(reopened(&torn).is_ok());
}

#[tokio::test]
async fn a_missing_or_foreign_segment_is_refused() {
    let (_, image) = before_and_after(false).await;
    let names: Vec<_> = image.keys().cloned().collect();
    let (active, _, _) = frames(&image).pop().unwrap();
    for name in &names[1..names.len() - 1] {
        let mut holed = image.clone();
        holed.remove(name);
        match reopened(&holed) {
            Err(LogStoreError::MissingSegment { segment }) => assert_eq!(segment, id(name)),
            other => panic!("{other:?}"),
        }
    }
    // the oldest holds entries that are still needed
    let mut beheaded = image.clone();
    beheaded.remove(&names[0]);
    assert!(matches!(reopened(&beheaded), Err(LogStoreError::Hole { .. })));

    let mut swapped = image.clone();
    swapped.insert(active.clone(), image[&names[0]].clone());
    assert!(matches!(
        reopened(&swapped),
        Err(LogStoreError::Damaged { offset: 0, what: "it is another segment", .. })
    ));
    // frames of another segment under this one's header
    let mut grafted = image.clone();
    let middle = &names[1];
    grafted.get_mut(middle).unwrap()[SEGMENT_HEADER_BYTES..]
        .copy_from_slice(&image[&names[0]][SEGMENT_HEADER_BYTES..SHORT_SEGMENT as usize]);
    assert!(matches!(
        reopened(&grafted),
        Err(LogStoreError::Damaged { what: "a frame is lost that others follow", .. })
    ));
    // a segment of another log, rightly numbered
    let (_, other) = before_and_after(false).await;
    let mut mixed = image.clone();
    mixed.insert(active.clone(), other[&active].clone());
    assert!(matches!(
        reopened(&mixed),
        Err(LogStoreError::Damaged { offset: 0, what: "it is another log's", .. })
    ));
    assert!(matches!(reopened(&Image::new()), Err(LogStoreError::UnknownFormat { got: None })));
}

/// A new log, then these frames, rightly summed.
fn crafted(bodies: Vec<Draft>) -> Result<(Model, Option<LogId>), LogStoreError> {
    let mut image = formatted();
    let (name, _, mut at) = frames(&image).pop().unwrap();
    let bytes = image.get_mut(&name).unwrap();
    let spot = Spot { salt: read_segment_header(id(&name), bytes).unwrap(), segment: id(&name) };
    for (sequence, body) in (2..).zip(bodies) {
        let mut frame = body.finish();
        spot.seal(&mut frame, at as u64, sequence).unwrap();
        bytes[at..at + frame.len()].copy_from_slice(&frame);
        at += frame.len();
    }
    reopened(&image)
}

fn put(kind: u8, records: &[Vec<u8>]) -> Draft {
    let mut draft = Draft::new();
    for record in records {
        draft.put(kind, record).unwrap();
    }
    draft
}

fn encoded(indexes: impl IntoIterator<Item = u64>) -> Vec<Vec<u8>> {
    indexes.into_iter().map(|index| record::encode(&entry(1, index, 10)).unwrap()).collect()
}

#[test]
fn frames_that_no_writer_writes_are_refused_by_name() {
    let (found, _) = crafted(vec![put(ENTRY, &encoded(3..6)), put(ENTRY, &encoded(6..9))]).unwrap();
    assert_eq!(found.entries.len(), 6, "the honest twin opens");

    let error = crafted(vec![put(ENTRY, &encoded([3, 4, 6]))]).unwrap_err();
    assert!(matches!(error, LogStoreError::Hole { first: 5, last: 6, .. }), "{error}");
    let error = crafted(vec![put(ENTRY, &encoded([3, 4, 4]))]).unwrap_err();
    assert!(matches!(error, LogStoreError::Overwrite { index: 4 }), "{error}");
    let error = crafted(vec![put(ENTRY, &[vec![1, 2, 3]])]).unwrap_err();
    assert!(matches!(error, LogStoreError::Damaged { what: "an entry is cut short", .. }), "{error}");
    let error = crafted(vec![put(VOTE, &[vec![9; 20]])]).unwrap_err();
    assert!(
        matches!(error, LogStoreError::CorruptPointer { key: "vote", what: "its version is unknown" }),
        "{error}"
    );
    let error = crafted(vec![put(99, &[vec![]])]).unwrap_err();
    assert!(
        matches!(error, LogStoreError::Damaged { what: "a record is of an unknown kind", .. }),
        "{error}"
    );
    let pointers = record::encode(&journal::Pointers::default()).unwrap();
    let error = crafted(vec![put(POINTERS, std::slice::from_ref(&pointers))]).unwrap_err();
    assert!(matches!(error, LogStoreError::Damaged { what: "a head is in its middle", .. }), "{error}");
    let error = crafted(vec![put(POINTERS, &[pointers.clone(), pointers])]).unwrap_err();
    assert!(
        matches!(error, LogStoreError::Damaged { what: "pointers are not at the head of a segment", .. }),
        "{error}"
    );
}

#[test]
fn a_head_repeats_what_precedes_it() {
    let opened = |head: Option<journal::Pointers>| {
        let mut image = formatted();
        let (name, first) = image.pop_first().unwrap();
        let salt = read_segment_header(id(&name), &first).unwrap();
        let mut draft = Draft::new();
        if let Some(head) = head {
            draft.pointers(&head).unwrap();
        }
        let mut frame = draft.finish();
        Spot { salt, segment: 2 }.seal(&mut frame, SEGMENT_HEADER_BYTES as u64, 2).unwrap();
        let second = [frame::segment_header(salt, 2), frame].concat();
        reopened(&Image::from([(name, first), (Segment::name(2), second)]))
    };
    let honest = journal::Pointers::default();
    opened(Some(honest)).unwrap();
    for (head, said) in [
        (None, "its head is missing"),
        (
            Some(journal::Pointers { vote: Some(Vote::new(1, 1)), ..honest }),
            "its head contradicts what precedes it",
        ),
    ] {
        match opened(head) {
            Err(LogStoreError::Damaged { segment: 2, offset: 512, what }) => assert_eq!(what, said),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_damaged_entry_is_reported_when_read() {
    let mut records = encoded(0..9);
    records[4][12] ^= 1;
    let mut image = formatted();
    let (name, _, at) = frames(&image).pop().unwrap();
    let bytes = image.get_mut(&name).unwrap();
    let spot = Spot { salt: read_segment_header(id(&name), bytes).unwrap(), segment: id(&name) };
    let mut frame = put(ENTRY, &records).finish();
    spot.seal(&mut frame, at as u64, 2).unwrap();
    bytes[at..at + frame.len()].copy_from_slice(&frame);

    let mut store = start(&Disk::holding(image)).unwrap();
    let error = store.try_get_log_entries(0..9).await.unwrap_err();
    assert!(error.to_string().contains("log entry 4 is damaged: its checksum does not match"), "{error}");
    assert_eq!(store.try_get_log_entries(5..9).await.unwrap().len(), 4);
}

/// Whoever writes a command cannot write a frame: without the salt there is no sum.
#[tokio::test]
async fn a_frame_inside_a_command_is_none() {
    const BYTES: usize = 200;
    let image = formatted();
    let (name, _, begin) = frames(&image).pop().unwrap();
    let append = async |command: Vec<u8>| {
        let disk = Disk::holding(image.clone());
        let mut store = start(&disk).unwrap();
        let mut entry = blank_ent::<TypeConfig>(1, 1, 0);
        entry.payload = EntryPayload::Normal(Batch::new(command).unwrap());
        store.blocking_append(vec![entry]).await.unwrap();
        disk.image(Survives::OnlySynced)
    };
    // where the command's bytes will be, to the byte
    let marked = append(vec![0xee; BYTES]).await;
    let at = marked[&name].windows(8).position(|window| window == [0xee; 8]).unwrap();
    let place = at.next_multiple_of(ALIGN);
    let salt = read_segment_header(id(&name), &image[&name]).unwrap();
    for (salt, known) in [(Salt([0; 16]), false), (salt, true)] {
        let mut frame = Draft::new().finish();
        Spot { salt, segment: id(&name) }.seal(&mut frame, place as u64, 9).unwrap();
        let mut command = vec![0; BYTES];
        command[place - at..][..frame.len()].copy_from_slice(&frame);
        // the command's own frame is torn
        let mut torn = append(command).await;
        torn.get_mut(&name).unwrap()[begin] ^= 1;
        match (known, reopened(&torn)) {
            (false, Ok(found)) => assert_eq!(found, reopened(&image).unwrap()),
            (true, Err(LogStoreError::Damaged { what: "a frame is lost that others follow", .. })) => {}
            (_, other) => panic!("{other:?}"),
        }
    }
}

/// Bytes of format version 2, kept for ever: every later build must read them.
#[test]
fn version_two_stays_readable() {
    let salt = Salt(*b"0123456789abcdef");
    let header = frame::segment_header(salt, 7);
    assert_eq!(header.len(), SEGMENT_HEADER_BYTES);
    assert_eq!(
        hex::encode(&header[..40]) + "..." + &hex::encode(&header[504..]),
        "71726d2d726c6f67020000000000000030313233343536373839616263646566\
         0700000000000000...d1407a9181d1d3d7"
    );
    let mut draft = Draft::new();
    draft.pointers(&journal::Pointers { vote: Some(Vote::new(2, 1)), ..Default::default() }).unwrap();
    draft.step(&journal::Step::Purge(Purge { upto: log_id(1, 1, 4), all: true })).unwrap();
    draft.entry(&record::encode(&entry(3, 5, 3)).unwrap()).unwrap();
    draft.step(&journal::Step::Truncate(Truncation { from: 6, last: Some(log_id(3, 1, 5)) })).unwrap();
    draft.step(&journal::Step::Vote(Vote::new_committed(3, 1))).unwrap();
    draft.step(&journal::Step::Committed(log_id(3, 1, 5))).unwrap();
    let mut frame = draft.finish();
    Spot { salt, segment: 7 }.seal(&mut frame, SEGMENT_HEADER_BYTES as u64, 12).unwrap();
    assert_eq!(
        hex::encode(&frame),
        "78000000000000000c0000000000000093ee0bf905b7cb36e133849d18b4070f011100000001d238\
         f3562d4abe530000000102010000040d000000015a81b41b66b6ae6601010401021100000001d1f0\
         d8159570102c0301050103050505030e0000000173946e01e4643e8e0601030105050c0000000131\
         ff2916d263036c030101060c0000000198ae1822d73f2af70301050000000000"
    );

    let name = Segment::name(7);
    let image = Image::from([(name, [header, frame].concat())]);
    let (found, committed) = reopened(&image).unwrap();
    assert_eq!(found.purged, Some(log_id(1, 1, 4)));
    assert_eq!(found.entries.into_values().collect::<Vec<_>>(), [entry(3, 5, 3)]);
    assert_eq!(found.vote, Some(Vote::new_committed(3, 1)));
    assert_eq!(committed, Some(log_id(3, 1, 5)));
}

const ALIGN: usize = frame::ALIGN;
