//! Models of candle-transformers, unchanged, on the layers of `sam_runtime::nn`: every variable gets a gradient that central
//! differences confirm, and some steps of SAM lower the loss. Without arguments all of [`MODELS`], otherwise those named.

use std::process::ExitCode;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use candle_transformers::models;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sam_runtime::{Sam, sam};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A loss of its own variables.
type Loss = Box<dyn FnMut() -> Result<Tensor>>;

struct Model {
    name: &'static str,
    build: fn(VarBuilder<'_>) -> Result<Loss>,
    /// Variables, by a part of their name, that the model makes and its loss does not use, each with the reason.
    unused: &'static [(&'static str, &'static str)],
}

const STATISTICS: (&str, &str) = ("running_", "statistics of batch normalization");

const NO_KERNEL: &str = "a batch normalization whose convolution this block does not have";

/// Not among them, with the reason: what a model calls on candle's `Tensor` itself, no layer can replace.
const LEFT_OUT: &[(&str, &str)] = &[(
    "resnet",
    "calls `Tensor::max_pool2d_with_stride(3, 2)`, of which candle has no backward pass; its other layers train",
)];

const MODELS: &[Model] = &[
    Model { name: "bert", build: bert, unused: &[] },
    Model { name: "distilbert", build: distilbert, unused: &[] },
    Model { name: "modernbert", build: modernbert, unused: &[] },
    Model { name: "vit", build: vit, unused: &[] },
    Model { name: "dinov2", build: dinov2, unused: &[] },
    Model { name: "llama2_c", build: llama2_c, unused: &[] },
    Model { name: "llama", build: llama, unused: &[] },
    Model { name: "llama, tied", build: llama_tied, unused: &[] },
    Model { name: "gemma", build: gemma, unused: &[] },
    Model { name: "qwen2", build: qwen2, unused: &[] },
    Model { name: "qwen3", build: qwen3, unused: &[] },
    Model { name: "mistral", build: mistral, unused: &[] },
    Model { name: "phi", build: phi, unused: &[] },
    Model { name: "t5", build: t5, unused: &[] },
    Model { name: "whisper", build: whisper, unused: &[] },
    Model { name: "clip", build: clip, unused: &[] },
    Model { name: "mamba", build: mamba, unused: &[] },
    Model { name: "convnext", build: convnext, unused: &[] },
    Model { name: "efficientnet", build: efficientnet, unused: &[STATISTICS] },
    Model {
        name: "mobilenetv4",
        build: mobilenetv4,
        unused: &[
            STATISTICS,
            ("blocks.2.1.dw_start.bn", NO_KERNEL),
            ("blocks.2.2.dw_start.bn", NO_KERNEL),
            ("blocks.2.3.dw_start.bn", NO_KERNEL),
            ("blocks.2.4.dw_start.bn", NO_KERNEL),
            ("blocks.2.5.dw_mid.bn", NO_KERNEL),
            ("blocks.3.2.dw_start.bn", NO_KERNEL),
            ("blocks.3.3.dw_start.bn", NO_KERNEL),
            ("blocks.3.4.dw_start.bn", NO_KERNEL),
            ("blocks.3.5.dw_start.bn", NO_KERNEL),
        ],
    },
];

#[sam(rho = 0.02)]
fn sharpness_aware(loss: &mut dyn FnMut() -> Result<Tensor>) -> Result<Tensor> {
    loss()
}

/// Complaints about one model that are printed.
const MOST: usize = 8;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |model: &&Model| wanted.is_empty() || wanted.iter().any(|name| name == model.name);
    println!("{:14} {:>9} {:>12} {:>12}   loss, with SAM", "model", "variables", "no gradient", "worst error");
    let mut failed = false;
    for model in MODELS.iter().filter(is_wanted) {
        match check(model) {
            Ok(complaints) if complaints.is_empty() => {}
            Ok(complaints) => {
                failed = true;
                complaints.iter().take(MOST).for_each(|complaint| println!("    failed: {complaint}"));
                if complaints.len() > MOST {
                    println!("    and {} more", complaints.len() - MOST);
                }
            }
            Err(error) => {
                failed = true;
                println!("{:14} failed: {error}", model.name);
            }
        }
    }
    for (name, reason) in LEFT_OUT {
        println!("{name:14} left out: {reason}");
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Checks one model and prints a row of the table. Returns what is wrong with it.
fn check(model: &Model) -> Result<Vec<String>> {
    let vars = VarMap::new();
    let mut loss = (model.build)(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    let mut names: Vec<(String, Var)> =
        vars.data().lock().expect("no panic").iter().map(|(name, var)| (name.clone(), var.clone())).collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for (name, var) in names.iter().filter(|(name, _)| !name.contains(STATISTICS.0)) {
        // candle's own initial values cannot be seeded, and zeros and ones hide errors: a bias of 0, a scale of 1.
        let noise = normal(&mut rng, var.dims())?;
        let value = match var.dims() {
            _ if name.contains("freq_cis") => noise * 0.5,
            [_, inputs @ ..] if !inputs.is_empty() => noise / (inputs.iter().product::<usize>() as f64).sqrt(),
            _ if name.ends_with("bias") => noise * 0.1,
            _ => var.as_tensor() + (noise * 0.1)?,
        };
        var.set(&value?)?;
    }

    let mut complaints = Vec::new();
    let diagnosis = Sam::diagnose(&vars, &mut loss)?;
    let is_unused = |name: &str| model.unused.iter().any(|(part, _)| name.contains(part));
    for name in &diagnosis.without_gradient {
        if !is_unused(name) {
            complaints.push(format!("{name} gets no gradient"));
        }
    }
    let gradient = loss()?.backward()?;
    let mut total = 0.0;
    for grad in names.iter().filter_map(|(_, var)| gradient.get(var)) {
        total += grad.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
    }
    let mut worst = (0.0, String::new());
    for (name, var) in &names {
        let Some(grad) = gradient.get(var) else { continue };
        let error = difference(&mut loss, var, grad, total.sqrt(), &mut rng)?;
        if !(error <= worst.0) {
            worst = (error, name.clone());
        }
    }
    if !(worst.0 < TOLERANCE) {
        complaints.push(format!("the gradient of {} is off by {:.1e} of its norm", worst.1, worst.0));
    }

    let trained: Vec<Var> = names.into_iter().filter(|(name, _)| !is_unused(name)).map(|(_, var)| var).collect();
    let mut optimizer = AdamW::new(trained, ParamsAdamW { lr: 2e-3, ..Default::default() })?;
    let before = loss()?.to_scalar::<f64>()?;
    for _ in 0..STEPS {
        optimizer.backward_step(&sharpness_aware(&mut *loss)?)?;
    }
    let after = loss()?.to_scalar::<f64>()?;
    if !(after < before) {
        complaints.push(format!("the loss rose from {before} to {after}"));
    }
    let (with, without) = (diagnosis.with_gradient.len(), diagnosis.without_gradient.len());
    println!("{:14} {:>9} {without:>12} {:>12.1e}   {before:.4} to {after:.4}", model.name, with + without, worst.0);
    Ok(complaints)
}

const STEPS: usize = 5;

/// Most of a gradient's norm that a derivative along a direction may be off by, in f32.
const TOLERANCE: f64 = 0.02;

/// Lengths of the steps of differences, in norms of the variable: with a long one curvature is in the way, and kinks, with
/// a short one rounding. A right gradient agrees at one of them.
const STEP_LENGTHS: [f64; 4] = [1e-2, 3e-3, 1e-3, 3e-4];

/// How far the derivative of the loss along a direction, half gradient and half noise, is from the gradient's, in norms
/// of the gradient, or of a thousandth of the `total` gradient: the bias of a key, for one, has a gradient of 0. By central
/// differences, extrapolated.
fn difference(loss: &mut Loss, var: &Var, grad: &Tensor, total: f64, rng: &mut ChaCha8Rng) -> Result<f64> {
    let wide = |x: &Tensor| x.to_dtype(DType::F64)?.flatten_all();
    let norm = |x: &Tensor| x.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>();
    let grad = wide(grad)?;
    let noise = wide(&normal(rng, var.dims())?)?;
    let direction = ((&grad / norm(&grad)?.max(f64::MIN_POSITIVE))? + (&noise / norm(&noise)?)?)?;
    let direction = (&direction / norm(&direction)?)?;
    let expected = (&grad * &direction)?.sum_all()?.to_scalar::<f64>()?;
    let before = var.as_tensor().copy()?;
    let size = norm(&wide(&before)?)?.max(0.1);
    let mut at = |distance: f64| -> Result<f64> {
        let moved = (wide(&before)? + (&direction * distance)?)?.reshape(var.shape())?.to_dtype(DType::F32)?;
        var.set(&moved)?;
        let value = loss()?.to_scalar::<f64>();
        var.set(&before)?;
        value
    };
    let mut least = f64::INFINITY;
    for step in STEP_LENGTHS.map(|length| length * size) {
        let mut slope = |step: f64| -> Result<f64> { Ok((at(step)? - at(-step)?) / (2.0 * step)) };
        let found = (4.0 * slope(step)? - slope(2.0 * step)?) / 3.0;
        least = least.min((found - expected).abs() / norm(&grad)?.max(1e-3 * total));
        if least < TOLERANCE / 4.0 {
            break;
        }
    }
    Ok(least)
}

fn normal(rng: &mut ChaCha8Rng, dims: &[usize]) -> Result<Tensor> {
    let uniform = |rng: &mut ChaCha8Rng| rng.random_range(f64::EPSILON..1.0);
    let mut draw = || (-2.0 * uniform(rng).ln()).sqrt() * (std::f64::consts::TAU * uniform(rng)).cos();
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| draw() as f32).collect();
    Tensor::from_vec(values, dims, &Device::Cpu)
}

fn images(n: usize, channels: usize, side: usize) -> Result<Tensor> {
    normal(&mut ChaCha8Rng::seed_from_u64(1), &[n, channels, side, side])
}

fn tokens(n: usize, length: usize, vocabulary: u32) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let ids: Vec<u32> = (0..n * length).map(|_| rng.random_range(0..vocabulary)).collect();
    Tensor::from_vec(ids, (n, length), &Device::Cpu)
}

/// The mean square distance of all outputs to random targets, in f64.
fn distance(y: &Tensor) -> Result<Tensor> {
    let target = normal(&mut ChaCha8Rng::seed_from_u64(3), y.dims())?.to_dtype(DType::F64)?;
    (y.to_dtype(DType::F64)? - target)?.sqr()?.mean_all()
}

fn config<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(candle_core::Error::wrap)
}

fn bert(vb: VarBuilder<'_>) -> Result<Loss> {
    let config = config(json!({
        "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "max_position_embeddings": 8, "type_vocab_size": 2,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0
    }))?;
    let model = models::bert::BertForMaskedLM::load(vb, &config)?;
    let (x, types) = (tokens(3, 8, 30)?, tokens(3, 8, 2)?);
    Ok(Box::new(move || distance(&model.forward(&x, &types, None)?)))
}

fn distilbert(vb: VarBuilder<'_>) -> Result<Loss> {
    let config = config(json!({
        "vocab_size": 30, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "activation": "gelu",
        "max_position_embeddings": 8, "initializer_range": 0.02, "pad_token_id": 0
    }))?;
    let model = models::distilbert::DistilBertForMaskedLM::load(vb, &config)?;
    let (x, mask) = (tokens(3, 8, 30)?, Tensor::zeros((3, 1, 1, 8), DType::U8, &Device::Cpu)?);
    Ok(Box::new(move || distance(&model.forward(&x, &mask)?)))
}

fn modernbert(vb: VarBuilder<'_>) -> Result<Loss> {
    let config = config(json!({
        "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 8, "layer_norm_eps": 1e-5, "pad_token_id": 0, "global_attn_every_n_layers": 2,
        "global_rope_theta": 160000.0, "local_attention": 4, "local_rope_theta": 10000.0
    }))?;
    let model = models::modernbert::ModernBertForMaskedLM::load(vb, &config)?;
    let (x, mask) = (tokens(3, 8, 30)?, Tensor::ones((3, 8), DType::U32, &Device::Cpu)?);
    Ok(Box::new(move || distance(&model.forward(&x, &mask)?)))
}

fn vit(vb: VarBuilder<'_>) -> Result<Loss> {
    let config: models::vit::Config = config(json!({
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "image_size": 8, "patch_size": 4, "num_channels": 3, "qkv_bias": true
    }))?;
    let model = models::vit::Model::new(&config, 10, vb)?;
    let x = images(4, 3, 8)?;
    Ok(Box::new(move || distance(&model.forward(&x)?)))
}

/// At its own size of 518 pixels: elsewhere it interpolates by a factor that candle has no backward pass for.
fn dinov2(vb: VarBuilder<'_>) -> Result<Loss> {
    let model = models::dinov2::DinoVisionTransformer::new(vb, 1, 8, 1)?;
    let x = images(1, 3, 518)?;
    Ok(Box::new(move || distance(&model.forward(&x)?)))
}

fn llama2_c(vb: VarBuilder<'_>) -> Result<Loss> {
    use models::llama2_c::{Cache, Config, Llama};
    let config = Config {
        dim: 16,
        hidden_dim: 32,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        vocab_size: 30,
        seq_len: 8,
        norm_eps: 1e-5,
    };
    let mut cache = Cache::new(false, &config, vb.pp("rot"))?;
    let model = Llama::load(vb, config)?;
    let x = tokens(3, 8, 30)?;
    Ok(Box::new(move || distance(&model.forward(&x, 0, &mut cache)?)))
}

fn llama(vb: VarBuilder<'_>) -> Result<Loss> {
    any_llama(vb, false)
}

fn llama_tied(vb: VarBuilder<'_>) -> Result<Loss> {
    any_llama(vb, true)
}

fn any_llama(vb: VarBuilder<'_>, tied: bool) -> Result<Loss> {
    use models::llama::{Cache, Llama, LlamaConfig};
    let config: LlamaConfig = config(json!({
        "hidden_size": 16, "intermediate_size": 32, "vocab_size": 30, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 8,
        "tie_word_embeddings": tied
    }))?;
    let config = config.into_config(false);
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu)?;
    let model = Llama::load(vb, &config)?;
    let x = tokens(3, 8, 30)?;
    Ok(Box::new(move || distance(&model.forward(&x, 0, &mut cache)?)))
}

fn gemma(vb: VarBuilder<'_>) -> Result<Loss> {
    let config = config(json!({
        "attention_bias": false, "head_dim": 8, "hidden_act": "gelu", "hidden_size": 16, "intermediate_size": 32,
        "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "vocab_size": 30, "max_position_embeddings": 8
    }))?;
    let mut model = models::gemma::Model::new(false, &config, vb)?;
    let x = tokens(3, 8, 30)?;
    Ok(Box::new(move || {
        model.clear_kv_cache();
        distance(&model.forward(&x, 0)?)
    }))
}

fn qwen2(vb: VarBuilder<'_>) -> Result<Loss> {
    let config = config(json!({
        "vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 8, "sliding_window": 8, "max_window_layers": 2,
        "tie_word_embeddings": true, "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "use_sliding_window": false,
        "hidden_act": "silu"
    }))?;
    let mut model = models::qwen2::ModelForCausalLM::new(&config, vb)?;
    let x = tokens(3, 8, 30)?;
    Ok(Box::new(move || {
        model.clear_kv_cache();
        distance(&model.forward(&x, 0)?)
    }))
}

/// Its cache is `KvCache`.
fn qwen3(vb: VarBuilder<'_>) -> Result<Loss> {
    let config = config(json!({
        "vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "head_dim": 8, "attention_bias": false, "num_key_value_heads": 1, "max_position_embeddings": 8,
        "sliding_window": null, "max_window_layers": 2, "tie_word_embeddings": true, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6, "use_sliding_window": false, "hidden_act": "silu"
    }))?;
    let mut model = models::qwen3::ModelForCausalLM::new(&config, vb)?;
    let x = tokens(3, 8, 30)?;
    Ok(Box::new(move || {
        model.clear_kv_cache();
        distance(&model.forward(&x, 0)?)
    }))
}

fn mistral(vb: VarBuilder<'_>) -> Result<Loss> {
    let config = config(json!({
        "vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "head_dim": null, "num_key_value_heads": 1, "hidden_act": "silu", "max_position_embeddings": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": null, "use_flash_attn": false
    }))?;
    let mut model = models::mistral::Model::new(&config, vb)?;
    let x = tokens(3, 8, 30)?;
    Ok(Box::new(move || {
        model.clear_kv_cache();
        distance(&model.forward(&x, 0)?)
    }))
}

fn phi(vb: VarBuilder<'_>) -> Result<Loss> {
    let config = config(json!({
        "vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": null, "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 8,
        "layer_norm_eps": 1e-5, "tie_word_embeddings": false, "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        "qk_layernorm": false
    }))?;
    let mut model = models::phi::Model::new(&config, vb)?;
    let x = tokens(3, 8, 30)?;
    Ok(Box::new(move || {
        model.clear_kv_cache();
        distance(&model.forward(&x)?)
    }))
}

fn t5(vb: VarBuilder<'_>) -> Result<Loss> {
    let config = config(json!({
        "vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
        "relative_attention_num_buckets": 8, "dropout_rate": 0.0, "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0,
        "feed_forward_proj": "gated-gelu", "is_encoder_decoder": true, "pad_token_id": 0, "eos_token_id": 1
    }))?;
    let mut model = models::t5::T5ForConditionalGeneration::load(vb, &config)?;
    let (x, decoded) = (tokens(3, 8, 30)?, tokens(3, 5, 30)?);
    Ok(Box::new(move || {
        model.clear_kv_cache();
        distance(&model.forward(&x, &decoded)?)
    }))
}

fn whisper(vb: VarBuilder<'_>) -> Result<Loss> {
    let config = config(json!({
        "num_mel_bins": 4, "max_source_positions": 6, "d_model": 16, "encoder_attention_heads": 2, "encoder_layers": 2,
        "vocab_size": 30, "max_target_positions": 8, "decoder_attention_heads": 2, "decoder_layers": 2,
        "suppress_tokens": []
    }))?;
    let mut model = models::whisper::model::Whisper::load(&vb, config)?;
    let (sound, x) = (normal(&mut ChaCha8Rng::seed_from_u64(4), &[2, 4, 12])?, tokens(2, 8, 30)?);
    Ok(Box::new(move || {
        let heard = model.encoder.forward(&sound, true)?;
        let y = model.decoder.forward(&x, &heard, true)?;
        distance(&model.decoder.final_linear(&y)?)
    }))
}

fn clip(vb: VarBuilder<'_>) -> Result<Loss> {
    use models::clip::text_model::{Activation, ClipTextConfig};
    use models::clip::vision_model::ClipVisionConfig;
    let text_config = ClipTextConfig {
        vocab_size: 30,
        embed_dim: 16,
        activation: Activation::QuickGelu,
        intermediate_size: 32,
        max_position_embeddings: 8,
        pad_with: None,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        projection_dim: 16,
    };
    let vision_config = ClipVisionConfig {
        embed_dim: 16,
        activation: Activation::QuickGelu,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        projection_dim: 16,
        num_channels: 3,
        image_size: 8,
        patch_size: 4,
    };
    let config = models::clip::ClipConfig { text_config, vision_config, logit_scale_init_value: 1.0, image_size: 8 };
    let model = models::clip::ClipModel::new(vb, &config)?;
    let (x, text) = (images(3, 3, 8)?, tokens(3, 8, 30)?);
    Ok(Box::new(move || distance(&model.forward(&x, &text)?.0)))
}

/// One token after the other, as the model is written.
fn mamba(vb: VarBuilder<'_>) -> Result<Loss> {
    use models::mamba::{Config, Model, State};
    let config = Config { d_model: 16, n_layer: 2, vocab_size: 30, pad_vocab_size_multiple: 1 };
    let model = Model::new(&config, vb)?;
    let x = tokens(1, 6, 30)?;
    Ok(Box::new(move || {
        let mut state = State::new(1, &config, DType::F32, &Device::Cpu)?;
        let steps = (0..6).map(|i| model.forward(&x.narrow(1, i, 1)?.squeeze(1)?, &mut state));
        distance(&Tensor::stack(&steps.collect::<Result<Vec<_>>>()?, 0)?)
    }))
}

/// With four pixels in its last blocks: their response normalization takes a root, and where `Tensor::gelu_erf` gives 0 for all
/// pixels of a channel, the gradient of that root is not finite.
fn convnext(vb: VarBuilder<'_>) -> Result<Loss> {
    let model = models::convnext::convnext(&models::convnext::Config::atto(), 10, vb)?;
    let x = images(2, 3, 64)?;
    Ok(Box::new(move || distance(&model.forward(&x)?)))
}

fn efficientnet(vb: VarBuilder<'_>) -> Result<Loss> {
    use models::efficientnet::{EfficientNet, MBConvConfig};
    let model = EfficientNet::new(vb, MBConvConfig::b0(), 10)?;
    let x = images(2, 3, 32)?;
    Ok(Box::new(move || distance(&model.forward(&x)?)))
}

fn mobilenetv4(vb: VarBuilder<'_>) -> Result<Loss> {
    let model = models::mobilenetv4::mobilenetv4(&models::mobilenetv4::Config::small(), 10, vb)?;
    let x = images(2, 3, 32)?;
    Ok(Box::new(move || distance(&model.forward(&x)?)))
}
