//! Decoding asks the system for no memory, on no thread. Alone in its process, because it counts all there is.

mod random_model;

use qat_infer::cpu::{KvType, Model, RunOptions, Session};
use qat_infer::files::Activations;
use random_model::{RandomModel, llama};

#[global_allocator]
static HEAP: dhat::Alloc = dhat::Alloc;

#[test]
fn decoding_and_reading_allocate_nothing_once_the_session_is_warm() {
    let format = "int4-g32".parse().expect("a format");
    for activations in [Activations::Float, Activations::Int8Token] {
        let random = RandomModel::new(&llama(512, 1, 2), format, activations);
        let model = Model::open(&random.path).expect("opens");
        for kv in KvType::ALL {
            let options = RunOptions { context: 400, kv, threads: Some(2) };
            let mut session = Session::new(&model.decoder, &options).expect("fits");
            let text: Vec<u32> = (0..300).map(|i| i * 7 % 512).collect();
            session.prefill(&text).expect("warm");
            // A thread that waits long goes to sleep, and the first time that takes memory too.
            std::thread::sleep(std::time::Duration::from_millis(20));
            session.step(1).expect("warm");
            session.reset();

            let profiler = dhat::Profiler::builder().testing().build();
            let before = dhat::HeapStats::get().total_blocks;
            // A new text over two passes and five tiles of the cache, then a token at a time into a sixth.
            session.prefill(&text).expect("a text");
            for id in 0..100 {
                session.step(id).expect("a token");
            }
            let after = dhat::HeapStats::get().total_blocks;
            let counted = std::hint::black_box(vec![1u8; 100]);
            assert_eq!(dhat::HeapStats::get().total_blocks, after + 1, "{counted:?} is counted");
            drop(profiler);
            assert_eq!(after - before, 0, "{kv}, {activations:?}");
        }
    }
}
