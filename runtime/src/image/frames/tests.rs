use super::*;
use std::path::Path;

/// A file of the tests' data.
fn data(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    std::fs::read(folder.join(name)).unwrap()
}

/// Gives at most so many bytes at once, and none more often than that.
struct Slow<'a>(&'a [u8], usize);

impl Read for Slow<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.1.min(to.len());
        self.0.read(&mut to[..count])
    }
}

/// What comes of a stream: frames as their bytes, errors as their words.
fn read(reader: impl Read, limits: Limits) -> Vec<Result<Vec<u8>, String>> {
    Frames::new(reader, "a pipe", limits)
        .map(|frame| frame.map(|frame| frame.bytes).map_err(|error| error.to_string()))
        .collect()
}

/// The same whatever a read gives: all of it, or a few bytes.
#[track_caller]
fn split(stream: &[u8]) -> Vec<Result<Vec<u8>, String>> {
    let whole = read(stream, Limits::default());
    for count in [1, 2, 3, 7, 64, 1000] {
        assert_eq!(
            read(Slow(stream, count), Limits::default()),
            whole,
            "{count} bytes at a time"
        );
    }
    whole
}

/// Frames and no error.
#[track_caller]
fn frames(stream: &[u8]) -> Vec<Vec<u8>> {
    split(stream).into_iter().map(|frame| frame.unwrap()).collect()
}

fn y4m(header: &str, planes: &[&[u8]]) -> Vec<u8> {
    let mut stream = format!("YUV4MPEG2 {header}\n").into_bytes();
    for planes in planes {
        stream.extend(b"FRAME\n");
        stream.extend(*planes);
    }
    stream
}

#[test]
fn each_file_of_a_stream_is_a_frame() {
    let names = ["images", "matrix"].map(|folder| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data")
            .join(folder);
        let files = std::fs::read_dir(path).unwrap().map(|file| file.unwrap().path());
        files.filter(|path| {
            // What stands behind an image is of no frame, or a frame of its own.
            let whole = !path.to_string_lossy().contains("-after-");
            whole
                && path
                    .extension()
                    .is_some_and(|kind| kind == "jpg" || kind == "png")
        })
    });
    let files: Vec<Vec<u8>> = names
        .into_iter()
        .flatten()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    assert!(files.len() > 60);
    let stream = files.concat();
    assert!(frames(&stream) == files);
    // What is decoded is what the file is.
    for (frame, file) in Frames::new(&stream[..], "", Limits::default()).zip(&files) {
        let limits = Limits::default();
        assert_eq!(
            frame.unwrap().decode(&limits).unwrap(),
            decode(file, "", &limits).unwrap()
        );
    }
}

#[test]
fn a_frame_is_there_as_soon_as_its_last_byte_is() {
    /// Fails where more is read than there is.
    struct Exactly(Vec<u8>);
    impl Read for Exactly {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            assert!(!self.0.is_empty(), "read behind the frame");
            let count = self.0.len().min(to.len());
            to[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            Ok(count)
        }
    }
    let planes = [7; 6];
    for stream in [
        data("images/jpeg_420.jpg"),
        data("images/jpeg_progressive.jpg"),
        data("images/png_rgb.png"),
        y4m("W2 H2 C420jpeg", &[&planes]),
    ] {
        assert!(
            Frames::new(Exactly(stream), "", Limits::default())
                .next()
                .unwrap()
                .is_ok()
        );
    }
}

/// A JPEG with a segment of an application behind SOI.
fn with_segment(jpeg: &[u8], code: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len() + 2).unwrap().to_be_bytes();
    [&jpeg[..2], &[0xff, code], &length, content, &jpeg[2..]].concat()
}

#[test]
fn what_stands_inside_a_frame_ends_nothing() {
    let jpeg = data("images/jpeg_420.jpg");
    let thumbnail = with_segment(
        &jpeg,
        0xe1,
        &[b"Exif\0\0", &data("images/jpeg_gray.jpg")[..]].concat(),
    );
    let ends = with_segment(&jpeg, 0xe2, b"\xff\xd9\xff\xd8\xff\xe0\xff\xd9");
    let comment = with_segment(&jpeg, 0xfe, b"\x89PNG\r\n\x1a\n");
    // Any number of 0xff may stand before a marker.
    let filled = [&jpeg[..2], &[0xff; 9], &jpeg[2..]].concat();
    let files = [thumbnail, ends, filled, comment, jpeg];
    assert!(frames(&files.concat()) == files);
    let png = data("images/png_rgb.png");
    let text = b"tEXtx\0\x89PNG\r\n\x1a\n\xff\xd8\xff\xe0IEND";
    let mut sum = flate2::Crc::new();
    sum.update(text);
    let chunk = [
        &u32::try_from(text.len() - 4).unwrap().to_be_bytes()[..],
        text,
        &sum.sum().to_be_bytes(),
    ]
    .concat();
    let odd = [&png[..33], &chunk, &png[33..]].concat();
    assert!(frames(&[&odd[..], &png].concat()) == [odd, png]);
}

#[test]
fn bytes_between_frames_are_passed_over_and_counted() {
    let (jpeg, png) = (data("images/jpeg_422.jpg"), data("images/png_l.png"));
    let header = b"--b\r\nContent-Type: image/jpeg\r\n\r\n";
    // An IP camera's multipart, a webcam's padding, and signatures that are none.
    let gaps: [&[u8]; 5] = [
        header,
        &[0; 5000],
        b"\r\n\xff\xd8\xff\xd8\x89PNG\r\n",
        b"YUV4MPEG3 FRAME\n",
        b"\xff",
    ];
    let mut stream = Vec::new();
    for gap in gaps {
        stream.extend([gap, &jpeg, &png].concat());
    }
    stream.extend([0; 99]);
    let found = frames(&stream);
    assert_eq!(found.len(), 10);
    assert!(found.chunks(2).all(|pair| pair == [jpeg.clone(), png.clone()]));
    let mut reader = Frames::new(&stream[..], "", Limits::default());
    let skipped: Vec<u64> = reader.by_ref().map(|frame| frame.unwrap().skipped()).collect();
    let lengths = gaps.map(|gap| gap.len() as u64);
    assert!(skipped.chunks(2).map(|pair| pair[0]).eq(lengths));
    assert_eq!(
        (reader.number(), reader.skipped()),
        (10, lengths.iter().sum::<u64>() + 99)
    );
}

#[test]
fn a_stream_that_ends_inside_a_frame() {
    for name in [
        "images/jpeg_420.jpg",
        "images/jpeg_progressive.jpg",
        "images/png_rgb.png",
    ] {
        let file = data(name);
        for length in 2..file.len() {
            let stream = [&file[..], &file[..length]].concat();
            let mut found = read(&stream[..], Limits::default()).into_iter();
            assert!(
                found.next().unwrap().is_ok_and(|frame| frame == file),
                "{name}, {length}"
            );
            let error = found.next().unwrap().unwrap_err();
            assert!(error.starts_with("frame 2 of `a pipe` is a damaged"), "{error}");
            assert!(error.contains("the stream ends inside it"), "{error}");
            assert!(found.next().is_none(), "{name}, {length}");
        }
    }
    let planes = [0; 24];
    let stream = y4m("W4 H4 C420mpeg2", &[&planes, &planes]);
    // FRAME, a line feed and 24 bytes.
    for cut in 1..29 {
        let found = split(&stream[..stream.len() - cut]);
        assert_eq!(found.len(), 2, "{cut}: {found:?}");
        assert!(
            found[1]
                .as_ref()
                .unwrap_err()
                .contains("the stream ends inside it")
        );
    }
}

#[test]
fn a_broken_frame_is_one_error_and_the_next_one_follows() {
    let jpeg = data("images/jpeg_420.jpg");
    // In the data of its scan, and in its head. Of two bytes nothing is left to tell a frame by.
    for length in 3..jpeg.len() {
        let found = split(&[&jpeg[..length], &jpeg, &jpeg].concat());
        assert!(found.len() == 3 && found[0].is_err(), "{length}: {found:?}");
        assert_eq!(found[1..], [Ok(jpeg.clone()), Ok(jpeg.clone())], "{length}");
    }
    let found = split(&[&jpeg[..jpeg.len() - 100], &jpeg].concat());
    let expected = "frame 1 of `a pipe` is a damaged JPEG: another frame begins inside it".to_owned();
    assert_eq!(found, [Err(expected), Ok(jpeg.clone())]);
    let png = data("images/png_rgb.png");
    for length in 8..png.len() {
        let found = split(&[&png[..length], &png].concat());
        assert!(found.len() == 2 && found[0].is_err(), "{length}: {found:?}");
        assert!(found[1].as_ref().is_ok_and(|frame| *frame == png), "{length}");
    }
    let mut changed = png.clone();
    changed[37..41].copy_from_slice(b"\0\0\0\0");
    let found = split(&[&changed[..], &jpeg].concat());
    assert!(
        found[0]
            .as_ref()
            .unwrap_err()
            .contains("damaged PNG: a chunk has no name"),
        "{found:?}"
    );
    assert_eq!(found[1..], [Ok(jpeg)]);
}

/// Each is looked at only as often as the stream is long.
#[test]
fn pngs_one_inside_the_other_are_given_up() {
    let chunk = |kind: &[u8; 4], data: &[u8], right: bool| {
        let mut sum = flate2::Crc::new();
        sum.update(kind);
        sum.update(data);
        let sum = if right { sum.sum() } else { !sum.sum() };
        let length = u32::try_from(data.len()).unwrap();
        [&length.to_be_bytes(), &kind[..], data, &sum.to_be_bytes()].concat()
    };
    let head = [
        b"\x89PNG\r\n\x1a\n",
        &chunk(b"IHDR", &[0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0], true)[..],
    ]
    .concat();
    // The data of a chunk is the next picture; its sum is right, and what follows is no chunk; or its sum is wrong.
    for right in [true, false] {
        let mut stream = head.clone();
        for _ in 0..2000 {
            stream = [&head[..], &chunk(b"aaaa", &stream, right), &[0; 8]].concat();
        }
        let found = split(&stream);
        assert!(found.iter().all(Result::is_err));
        assert!((2..200).contains(&found.len()), "{right}: {}", found.len());
    }
}

/// The segment of each holds the beginning of the next, and all of them end where markers are without number.
#[test]
fn jpegs_one_inside_the_other_are_given_up() {
    const FRAMES: usize = 2000;
    let mut stream = Vec::new();
    for frame in 0..FRAMES {
        let length = u16::try_from(10 * (FRAMES - frame) + frame).unwrap();
        stream.extend([&b"\xff\xd8\xff\xe1"[..], &length.to_be_bytes()].concat());
        stream.extend(format!("{frame:04}").bytes());
    }
    stream.extend([0xff; FRAMES + 10]);
    stream.extend([0; 1 << 16]);
    let found = read(&stream[..], Limits::default());
    assert!(found.iter().all(Result::is_err));
    assert!((2..200).contains(&found.len()), "{}", found.len());
}

/// EXIF whose second directory says where the thumbnail behind it is; none of its other fields.
fn exif(thumbnail: &[u8], little: bool) -> Vec<u8> {
    let two = |value: u16| {
        if little {
            value.to_le_bytes()
        } else {
            value.to_be_bytes()
        }
    };
    let four = |value: u32| {
        if little {
            value.to_le_bytes()
        } else {
            value.to_be_bytes()
        }
    };
    let order = if little { b"II" } else { b"MM" };
    let length = u32::try_from(thumbnail.len()).unwrap();
    let mut bytes = [
        &b"Exif\0\0"[..],
        order,
        &two(42),
        &four(8),
        &two(0),
        &four(14),
        &two(2),
    ]
    .concat();
    for (tag, value) in [(0x0201, 44), (0x0202, length)] {
        bytes.extend([&two(tag)[..], &two(4), &four(1), &four(value)].concat());
    }
    bytes.extend([&four(0)[..], thumbnail].concat());
    bytes
}

/// Frames whose segments of applications and comments hold anything, pictures too.
fn with_claims() -> Vec<(&'static str, Vec<u8>)> {
    let jpeg = data("images/jpeg_420.jpg");
    let small = data("images/jpeg_gray.jpg");
    let noise: Vec<u8> = (0..3000_u32).map(|at| (at * at / 7 % 251) as u8).collect();
    vec![
        ("plain", jpeg.clone()),
        ("exif", with_segment(&jpeg, 0xe1, &exif(&small, true))),
        (
            "exif, big-endian",
            with_segment(&jpeg, 0xe1, &exif(&small, false)),
        ),
        (
            "extension",
            with_segment(&jpeg, 0xe0, &[b"JFXX\0\x10", &small[..]].concat()),
        ),
        ("long", with_segment(&jpeg, 0xe2, &[&noise[..]; 20].concat())),
        ("comment", with_segment(&jpeg, 0xfe, &noise)),
        (
            "two",
            with_segment(&with_segment(&jpeg, 0xe4, &noise), 0xe1, &exif(&small, true)),
        ),
    ]
}

/// Where segments of applications and comments end.
fn ends(jpeg: &[u8]) -> Vec<usize> {
    let (mut at, mut ends) = (2, Vec::new());
    while jpeg[at + 1] != 0xda {
        let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        ends.extend((jpeg[at + 1] >= 0xe0).then_some(end));
        at = end;
    }
    ends
}

/// Wherever a frame is cut, also inside a segment that claims several of those behind it, it alone is lost.
#[test]
fn a_frame_cut_inside_a_segment_takes_no_other_with_it() {
    let small = data("images/jpeg_422.jpg");
    let tiny = data("matrix/0003-seq-444-whole-r1-33x17.jpg");
    let header = b"\r\n--b\r\nContent-Type: image/jpeg\r\n\r\n";
    let (mut all, mut exact) = (0, 0);
    for (name, jpeg) in with_claims() {
        let rests: [&[&[u8]]; 5] = [
            &[&jpeg, &jpeg],
            &[&small, &tiny, &jpeg, &small],
            &[header, &jpeg, header, &small],
            &[header, &tiny, header, &tiny, header, &tiny, header, &jpeg],
            &[&tiny],
        ];
        let ends = ends(&jpeg);
        let scan = jpeg.windows(2).rposition(|pair| pair == [0xff, 0xda]).unwrap();
        // Everywhere before the scan; of long segments near their ends, and here and there.
        let tried = |length: &usize| {
            let near = |end: &usize| end.abs_diff(*length) < 60;
            scan < 1000 || length.is_multiple_of(97) || *length < 100 || ends.iter().any(near)
        };
        for length in (4..scan).filter(tried) {
            for rest in rests {
                let expected: Vec<&[u8]> = rest
                    .iter()
                    .copied()
                    .filter(|bytes| **bytes != header[..])
                    .collect();
                let stream = [&jpeg[..length], &rest.concat()].concat();
                let found = read(&stream[..], Limits::default());
                let frames: Vec<&[u8]> = found.iter().flatten().map(|frame| &frame[..]).collect();
                let what = || format!("{name} cut at {length}: {found:?}");
                all += 1;
                if frames == expected && found.len() == expected.len() + 1 {
                    exact += 1;
                    continue;
                }
                // Two bytes of a segment may be any: what takes those of another kind of frame is that frame. And of
                // what is cut in its thumbnail, that may be an error too.
                assert_eq!(frames.len(), expected.len(), "{}", what());
                assert!(found.len() <= expected.len() + 2, "{}", what());
                for (frame, expected) in frames.iter().zip(&expected) {
                    let picture = |bytes: &[u8]| decode(bytes, "", &Limits::default()).unwrap();
                    assert!(frame.ends_with(&expected[2..]), "{}", what());
                    assert!(picture(frame) == picture(expected), "{}", what());
                }
            }
        }
    }
    assert!(exact * 100 >= all * 95, "{exact} of {all}");
}

/// What may stand in a segment is not the next frame: the same pictures, whole.
#[test]
fn a_frame_keeps_what_its_segments_hold() {
    let jpeg = data("images/jpeg_420.jpg");
    let small = data("images/jpeg_gray.jpg");
    let mut files: Vec<Vec<u8>> = with_claims().into_iter().map(|(_, jpeg)| jpeg).collect();
    // A picture that nothing describes; one in two segments, as previews of cameras are; one that is cut.
    files.push(with_segment(
        &jpeg,
        0xed,
        &[b"Photoshop 3.0\08BIM", &small[..], b"8BIM"].concat(),
    ));
    for cut in [100, small.len() / 2, 330, small.len() - 1] {
        let (first, second) = small.split_at(cut);
        files.push(with_segment(&with_segment(&jpeg, 0xe4, second), 0xe4, first));
    }
    files.push(with_segment(&jpeg, 0xe1, &exif(&small[..small.len() / 2], true)));
    files.push(with_segment(&jpeg, 0xe1, &exif(&small[..60], true)));
    // Nothing that begins a frame, and what only looks like it.
    files.push(with_segment(
        &jpeg,
        0xe5,
        b"\xff\xd8\xff\xd8\xff\xd9\xff\xd8\xff\x00",
    ));
    files.push(with_segment(
        &jpeg,
        0xe5,
        &[b"..\xff\xd8\xff\xe0", &[7; 90][..]].concat(),
    ));
    files.push(with_segment(&jpeg, 0xe5, b"its last bytes: \xff\xd8"));
    files.push(with_segment(&jpeg, 0xe5, b"its last byte: \xff"));
    let stream = files.concat();
    let found = split(&stream);
    for (at, (found, file)) in found.iter().zip(&files).enumerate() {
        assert!(found.as_ref().is_ok_and(|frame| frame == file), "{at}: {found:?}");
    }
    assert_eq!(found.len(), files.len());
    let limits = Limits::default();
    let picture = decode(&jpeg, "", &limits).unwrap();
    for frame in Frames::new(&stream[..], "", limits) {
        assert!(frame.unwrap().decode(&limits).unwrap() == picture);
    }
}

#[test]
fn frames_are_bounded() {
    let limits = Limits { max_pixels: 4000 };
    // Of 33 x 17 and 61 x 83 pixels or so: what the header says decides.
    let small = data("matrix/0003-seq-444-whole-r1-33x17.jpg");
    let mut large = small.clone();
    let frame = large.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    large[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
    let mut png = data("images/png_rgb.png");
    png[16..24].copy_from_slice(&[0, 0, 0x40, 0, 0, 0, 0x40, 0]);
    let mut sum = flate2::Crc::new();
    sum.update(&png[12..29]);
    png[29..33].copy_from_slice(&sum.sum().to_be_bytes());
    let found = read(&[&large[..], &small, &png, &small].concat()[..], limits);
    let errors: Vec<&String> = found.iter().filter_map(|frame| frame.as_ref().err()).collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(
        errors[0].contains("`frame 1` is 65535 x 65535 pixels, expected at most 4000"),
        "{errors:?}"
    );
    assert!(
        errors[1].contains("`frame 3` is 16384 x 16384 pixels"),
        "{errors:?}"
    );
    assert_eq!(found.iter().flatten().count(), 2);

    // A frame whose data never end, in the memory of what its size may take.
    let endless = io::Read::chain(&small[..small.len() - 2], io::repeat(7));
    let mut frames = Frames::new(endless, "a pipe", limits);
    let error = frames.next().unwrap().unwrap_err();
    assert!(
        !error.is_end()
            && error
                .to_string()
                .contains("expected at most that many of its size"),
        "{error}"
    );
    assert!(frames.window.bytes().len() < 1 << 20);
    let error = frames.next().unwrap().unwrap_err();
    let expected = "`a pipe` has lost its frames: none begins in 268435456 bytes behind frame 1, expected JPEG, PNG or y4m frames";
    assert_eq!(error.to_string(), expected);
    assert!(frames.next().is_none());
    // Segments without end, and a head without end.
    let segments = io::Read::chain(
        &b"\xff\xd8"[..],
        std::iter::repeat_n(b"\xff\xe0\x00\x04ab", 1 << 22)
            .flatten()
            .copied()
            .collect::<Vec<u8>>()
            .leak() as &[u8],
    );
    let error = Frames::new(segments, "a pipe", limits)
        .next()
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains("over 16777216 bytes"), "{error}");
}

#[test]
fn a_stream_without_a_frame() {
    let webp = data("images/webp_lossy.webp");
    let cases: [(&[u8], &str); 8] = [
        (
            b"",
            "`a pipe` has no frame: it is empty (0 bytes), expected JPEG, PNG or y4m frames",
        ),
        (b"hello", "`a pipe` has no frame: it is text, expected JPEG"),
        (
            b"\0\0\0\x18ftypisom....",
            "it is an MP4 or QuickTime file, expected",
        ),
        (&webp, "it is a WebP image, expected"),
        (b"GIF89a..........", "it is a GIF image"),
        (
            b"\x01\x02\x03",
            "it is of an unknown format (it starts with 01 02 03)",
        ),
        (
            b"YUV4MPEG2 W2 H2\n",
            "it is a y4m stream that ends behind its header",
        ),
        (
            b"YUV4MPEG2 W2 H2",
            "is a y4m stream with a header that does not end, expected a line of at most 4096 bytes",
        ),
    ];
    for (stream, expected) in cases {
        let found = split(stream);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].as_ref().unwrap_err().contains(expected), "{found:?}");
    }
    // Without an end it ends here.
    let found = read(io::repeat(0), Limits::default());
    let error = found[0].as_ref().unwrap_err();
    assert!(
        error.contains("no frame begins in its first 1048576 bytes, expected JPEG"),
        "{error}"
    );
    assert_eq!(found.len(), 1);
    struct Fails;
    impl Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("gone"))
        }
    }
    assert_eq!(
        read(Fails, Limits::default()),
        [Err("cannot read frames from `a pipe`: gone".to_owned())]
    );
}

#[test]
fn y4m_headers() {
    let limits = Limits { max_pixels: 10_000 };
    let cases = [
        ("W4 H2 F30:1 Ip A1:1 C420jpeg XYSCSS=420JPEG", 12),
        ("W4 H2", 12),
        ("H2 W4 I? C420mpeg2 XCOLORRANGE=LIMITED", 12),
        ("W5 H3 C420paldv", 15 + 2 * 6),
        ("W5 H3 C411", 15 + 2 * 6),
        ("W5 H3 C422", 15 + 2 * 9),
        ("W5 H3 C444", 45),
        ("W5 H3 C444alpha", 60),
        ("W5 H3 Cmono XCOLORRANGE=FULL", 15),
    ];
    for (header, bytes) in cases {
        let planes = vec![100; bytes];
        let stream = y4m(header, &[&planes, &planes]);
        assert_eq!(frames(&stream), [planes.clone(), planes], "{header}");
    }
    // Parameters of a frame, two streams one behind the other, and bytes that were lost.
    let stream =
        b"YUV4MPEG2 W1 H1 Cmono\nFRAME Ip Xa\n1FRAME\n2YUV4MPEG2 W2 H1 Cmono\nFRAME\n34lostFRAME\n56";
    assert_eq!(frames(stream), [&b"1"[..], b"2", b"34", b"56"]);
    let refused = [
        (
            "W4 H4 It C420jpeg",
            "interlaced, `It`, expected whole frames, `Ip` (ffmpeg: -vf yadif)",
        ),
        ("W4 H4 Im", "interlaced, `Im`"),
        (
            "W4 H4 C420p10",
            "of chroma `C420p10`, expected 8 bits in 420jpeg, 420mpeg2",
        ),
        ("W4 H4 C444p16", "of chroma `C444p16`"),
        ("W4 H4 Cmono9", "of chroma `Cmono9`"),
        ("W4 H4 C", "of chroma `C`"),
        ("W4", "without width or height, expected W and H"),
        ("W4 H0", "of 4 x 0 pixels, expected 1 to 10000 pixels"),
        ("W400 H400", "of 400 x 400 pixels, expected 1 to 10000 pixels"),
        (
            "W99999999999999999999 H4",
            "with an edge of `99999999999999999999`, expected a number",
        ),
        (
            "W18446744073709551615 H18446744073709551615",
            "pixels, expected 1 to",
        ),
        ("W-4 H4", "with an edge of `-4`"),
        (
            "W4 H4 XCOLORRANGE=SOME",
            "of the range `SOME`, expected XCOLORRANGE=FULL or LIMITED",
        ),
    ];
    for (header, expected) in refused {
        let found = read(&y4m(header, &[&[0; 24]])[..], limits);
        let error = found[0].as_ref().unwrap_err();
        assert!(
            found.len() == 1 && error.contains(expected),
            "{header}: {found:?}"
        );
    }
}

/// Chroma at a place of luma, in float64, by the definition: linear between samples, which lie where the placement says.
fn chroma_at(plane: &[u8], (width, height): (usize, usize), place: (f64, f64)) -> f64 {
    let sample = |x: f64, y: f64| {
        let (x, y) = (
            x.clamp(0.0, (width - 1) as f64),
            y.clamp(0.0, (height - 1) as f64),
        );
        f64::from(plane[y as usize * width + x as usize])
    };
    let (left, top) = (place.0.floor(), place.1.floor());
    let (x, y) = (place.0 - left, place.1 - top);
    let row = |top: f64| sample(left, top) * (1.0 - x) + sample(left + 1.0, top) * x;
    row(top) * (1.0 - y) + row(top + 1.0) * y
}

#[test]
fn planes_become_rgb_as_bt_601_says() {
    // Name, samples of luma for one of chroma, and where the first one lies, in samples of luma.
    let placements = [
        ("420jpeg", (2, 2), (0.5, 0.5)),
        ("420mpeg2", (2, 2), (0.0, 0.5)),
        ("420paldv", (2, 2), (0.0, 0.0)),
        ("411", (4, 1), (0.0, 0.0)),
        ("422", (2, 1), (0.0, 0.0)),
        ("444", (1, 1), (0.0, 0.0)),
        ("444alpha", (1, 1), (0.0, 0.0)),
    ];
    let mut random = 1_u32;
    let mut noise = || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 24) as u8
    };
    for (width, height) in [(1_usize, 1_usize), (2, 2), (5, 3), (16, 10), (33, 17)] {
        for (name, (across, down), first) in placements {
            for range in ["FULL", "LIMITED"] {
                let size = (width.div_ceil(across), height.div_ceil(down));
                let mut plane = |count: usize| (0..count).map(|_| noise()).collect::<Vec<u8>>();
                let (luma, cb, cr) = (
                    plane(width * height),
                    plane(size.0 * size.1),
                    plane(size.0 * size.1),
                );
                let alpha = if name == "444alpha" {
                    plane(width * height)
                } else {
                    Vec::new()
                };
                let planes = [&luma[..], &cb, &cr, &alpha].concat();
                let stream = y4m(
                    &format!("W{width} H{height} C{name} XCOLORRANGE={range}"),
                    &[&planes],
                );
                let frame = Frames::new(&stream[..], "", Limits::default())
                    .next()
                    .unwrap()
                    .unwrap();
                let picture = frame.decode(&Limits::default()).unwrap();
                let full = range == "FULL";
                for (at, pixel) in picture.pixels().chunks_exact(3).enumerate() {
                    let (x, y) = (at % width, at / width);
                    let place = (
                        (x as f64 - first.0) / across as f64,
                        (y as f64 - first.1) / down as f64,
                    );
                    let chroma =
                        |plane| (chroma_at(plane, size, place) - 128.0) / if full { 255.0 } else { 224.0 };
                    let (cb, cr) = (chroma(&cb), chroma(&cr));
                    let luma = f64::from(luma[at]);
                    let luma = if full { luma / 255.0 } else { (luma - 16.0) / 219.0 };
                    let (red, blue) = (luma + 1.402 * cr, luma + 1.772 * cb);
                    let green = (luma - 0.299 * red - 0.114 * blue) / 0.587;
                    for (found, exact) in pixel.iter().zip([red, green, blue]) {
                        let exact = (255.0 * exact).clamp(0.0, 255.0);
                        let found = f64::from(*found);
                        assert!(
                            (found - exact).abs() <= 0.6,
                            "{name} {range} {width} x {height}, {x} {y}: {found}, {exact}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn gray_alone_has_the_full_range_unless_it_says_otherwise() {
    let levels = [0, 16, 126, 235, 255];
    for (range, expected) in [
        ("", levels),
        (" XCOLORRANGE=FULL", levels),
        (" XCOLORRANGE=LIMITED", [0, 0, 128, 255, 255]),
    ] {
        let stream = y4m(&format!("W5 H1 Cmono{range}"), &[&levels]);
        let frame = Frames::new(&stream[..], "", Limits::default())
            .next()
            .unwrap()
            .unwrap();
        let picture = frame.decode(&Limits::default()).unwrap();
        let found: Vec<u8> = picture.pixels().chunks_exact(3).map(|pixel| pixel[1]).collect();
        assert_eq!(found, expected, "{range}");
        assert!(
            picture
                .pixels()
                .chunks_exact(3)
                .all(|pixel| pixel == [pixel[0]; 3])
        );
    }
}

#[test]
fn damage_anywhere_is_the_same_however_it_is_read() {
    let files = [
        data("images/jpeg_420.jpg"),
        data("images/png_rgb.png"),
        data("images/jpeg_progressive.jpg"),
        y4m("W4 H4 C420mpeg2", &[&[90; 24], &[91; 24]]),
    ];
    let clean = files.concat();
    let mut random = 7_u64;
    let mut below = |most: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % most
    };
    for round in 0..150 {
        let mut stream = clean.clone();
        for _ in 0..=below(4) {
            let (at, length) = (below(stream.len()), below(40));
            let end = (at + length).min(stream.len());
            match below(3) {
                0 => drop(stream.drain(at..end)),
                1 => stream[at..end]
                    .iter_mut()
                    .for_each(|byte| *byte = below(256) as u8),
                _ => drop(stream.splice(at..at, clean[below(clean.len())..].iter().copied().take(length))),
            }
        }
        let whole = read(&stream[..], Limits::default());
        assert!(whole.len() < 40, "{round}");
        for count in [1, 5, 300] {
            assert_eq!(
                read(Slow(&stream, count), Limits::default()),
                whole,
                "{round}, {count}"
            );
        }
        for frame in Frames::new(&stream[..], "", Limits::default()).flatten() {
            drop(frame.decode(&Limits { max_pixels: 1 << 20 }));
        }
    }
}
