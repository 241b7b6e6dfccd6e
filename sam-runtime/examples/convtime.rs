use candle_core::{Device, Module, Tensor, Var};
use candle_nn::Conv2dConfig;
use std::time::Instant;
#[global_allocator]
static A: mimalloc::MiMalloc = mimalloc::MiMalloc;
fn best(mut f: impl FnMut()) -> f64 {
    let mut b = f64::MAX;
    for _ in 0..7 {
        let t = Instant::now();
        f();
        b = b.min(t.elapsed().as_secs_f64());
    }
    b
}
fn main() {
    let dev = Device::Cpu;
    let a = Tensor::randn(0f32, 1., (1024, 1024), &dev).unwrap();
    for (n, c, f, s, k, st) in [
        (128, 3, 16, 32, 3, 1),
        (128, 16, 16, 32, 3, 1),
        (128, 32, 32, 16, 3, 1),
        (128, 64, 64, 8, 3, 1),
        (128, 64, 64, 32, 3, 1),
        (128, 128, 128, 16, 3, 1),
        (128, 256, 256, 8, 3, 1),
        (128, 512, 512, 4, 3, 1),
        (32, 160, 160, 32, 3, 1),
        (32, 320, 320, 16, 3, 1),
        (32, 640, 640, 8, 3, 1),
        (128, 64, 128, 32, 3, 2),
        (128, 64, 128, 32, 1, 2),
        (128, 16, 64, 32, 1, 1),
        (128, 16, 64, 32, 3, 1),
    ] {
        if let Some(x) = std::env::args().nth(1) {
            if x.parse::<usize>().unwrap() != c {
                continue;
            }
        }
        let mm = best(|| {
            a.matmul(&a).unwrap();
        });
        let x = Var::randn(0f32, 1., (n, c, s, s), &dev).unwrap();
        let w = Var::randn(0f32, 1., (f, c, k, k), &dev).unwrap();
        let cfg = Conv2dConfig { padding: k / 2, stride: st, ..Default::default() };
        let xd = x.as_detached_tensor();
        let wd = w.as_detached_tensor();
        let conv = sam_runtime::nn::Conv2d::new(wd.clone(), None, cfg);
        let convx = sam_runtime::nn::Conv2d::new(w.as_tensor().clone(), None, cfg);
        let flops = 2. * (n * c * f * (s / st) * (s / st) * k * k) as f64 / 1e9;
        let fw = best(|| {
            conv.forward(&xd).unwrap();
        });
        let y = convx.forward(&xd).unwrap();
        let yx = conv.forward(x.as_tensor()).unwrap();
        let dw = best(|| {
            y.backward().unwrap();
        });
        let dx = best(|| {
            yx.backward().unwrap();
        });
        println!(
            "{n:4} {c:4}->{f:4} {s:3}² k{k} s{st}: ms {:7.2} {:7.2} {:7.2}  GF fwd {:6.1} dx {:6.1} dw {:6.1}  mm {:6.1}",
            fw * 1e3,
            dx * 1e3,
            dw * 1e3,
            flops / fw,
            flops / dx,
            flops / dw,
            2. * 1024f64.powi(3) / 1e9 / mm
        );
    }
}
