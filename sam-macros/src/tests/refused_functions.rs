//! What is refused in the function below the attribute.

use super::{refusals, rewrite, split};

#[test]
fn what_no_loss_can_be() {
    let not_a_function = "expected a function: `#[sam]` goes above the `fn` that returns the loss";
    let by_value = "`self` cannot be moved into both passes: take `&self` or `&mut self`";
    let no_result = "a loss function must return a `Result`: write `-> Result<Tensor>`";
    for (item, refusal) in [
        ("struct Loss;", not_a_function),
        ("pub mod loss {}", not_a_function),
        ("const LOSS: f64 = 0.;", not_a_function),
        ("const fn f() -> Result<Tensor> {}", "a loss function cannot be `const`: tensors are computed at run time"),
        (
            "async fn f() -> Result<Tensor> {}",
            "a loss function cannot be `async`: await first, and pass the result as an argument",
        ),
        (
            "extern \"C\" fn f() -> Result<Tensor> {}",
            "a loss function cannot be `extern`: call it from the `extern` function",
        ),
        ("fn f(x: T, ...) -> Result<Tensor> {}", "a loss function cannot be variadic: take a slice"),
        ("fn f() -> Result<Tensor>;", "a loss function needs a body: put `#[sam]` on the implementation"),
        ("fn f(self) -> Result<Tensor> {}", by_value),
        ("fn f(mut self) -> Result<Tensor> {}", by_value),
        ("fn f(self: Rc<Self>) -> Result<Tensor> {}", by_value),
        ("fn f(x: T, (y, x): (T, T)) -> Result<Tensor> {}", "`x` is bound twice: rename one"),
        ("#[sam_runtime::sam(p = 1)] fn f() -> Result<Tensor> {}", "`#[sam]` is given twice: put all keys into one"),
        ("fn f() {}", no_result),
        ("fn f() -> (Tensor, Tensor) {}", no_result),
        ("fn f() -> &Tensor {}", no_result),
        ("fn f() -> [Tensor; 2] {}", no_result),
        ("fn f() -> impl Loss {}", no_result),
        ("fn f() -> ! {}", no_result),
        ("fn f() -> (candle_core::Tensor) {}", no_result),
        ("fn f() -> Option<Tensor> {}", no_result),
        ("fn f() -> f32 {}", no_result),
    ] {
        assert_eq!(refusals(&format!("#[sam] {item}")), [refusal], "{item}");
    }
    assert_eq!(
        refusals("#[sam(with = x)] fn f() -> Result<Tensor> {}"),
        ["`x` is not an argument: the function has no arguments"]
    );
}

#[test]
fn what_is_a_whole_step() {
    let is = "is an optimizer: `#[sam]` goes on the function that computes the loss, and the optimizer's step stays outside it";
    for argument in [
        "opt: &mut impl Optimizer",
        "opt: &mut dyn candle_nn::Optimizer",
        "opt: Box<dyn Optimizer>",
        "opt: &mut candle_nn::AdamW",
        "opt: &mut SGD",
        "opt: Option<Sgd>",
        "opt: &mut [Adam]",
        "opt: &RefCell<Sgd>",
        "opt: Arc<Mutex<AdamW>>",
        "opt: &mut MyOptimizer",
        "opt: &mut O",
        "opt: &mut P",
    ] {
        let source =
            format!("#[sam] fn f<O: Optimizer, P>({argument}) -> Result<Tensor> where P: x::Optimizer {{ step(opt) }}");
        assert_eq!(refusals(&source), [format!("`opt` {is}")], "{argument}");
    }
    let source = "#[sam] fn f((a, opt): (&Tensor, &mut Sgd), self_: &Self) -> Result<Tensor> { step(a, opt) }";
    assert_eq!(refusals(source).len(), 1);
    assert_eq!(
        refusals("#[sam] fn f(&mut self) -> Result<Tensor> { let l = self.l()?; self.opt.backward_step(&l)?; Ok(l) }"),
        [
            "`backward_step` inside a loss function: `#[sam]` goes on the function that computes the loss, and the optimizer's step \
          stays outside it"
        ]
    );
    for item in [
        "fn f(opt: &AdamW) -> Result<Tensor> { scale(opt.learning_rate()) }",
        "fn f(opt: &mut AdamW, w: &Var) -> Result<Tensor> { w.sqr() }",
        "fn f(options: &mut OptimizerOptions, step: &dyn Fn(&mut Sgd)) -> Result<Tensor> { g(options, step) }",
    ] {
        assert_eq!(refusals(&format!("#[sam(rho = opt.learning_rate())] {item}")), [""; 0], "{item}");
    }
}

#[test]
fn what_a_pass_cannot_begin_with() {
    for (ty, handle) in [
        ("Arc<Mutex<StdRng>>", "Arc"),
        ("&Arc<Mutex<StdRng>>", "Arc"),
        ("&mut std::rc::Rc<RefCell<StdRng>>", "Rc"),
        ("&mut Option<Rc<Cell<u64>>>", "Rc"),
        ("&mut rand::rngs::ThreadRng", "ThreadRng"),
        ("ThreadRng", "ThreadRng"),
        ("&&RefCell<StdRng>", "&"),
        ("&mut &Counter", "&"),
    ] {
        let source = format!("#[sam(replay(rng))] fn f(rng: {ty}) -> Result<Tensor> {{ draw(rng) }}");
        let refusal = format!(
            "`rng` cannot be replayed: a clone of `{handle}` shares its state; take the state itself, e.g. \
             `rng: &mut StdRng`"
        );
        assert_eq!(refusals(&source), [refusal], "{ty}");
    }
    let reassigned = "cannot be reassigned, as the body runs twice: take";
    for (item, refusal) in [
        (
            "fn f(mut self: &mut Self, sam: &Sam) -> Result<Tensor> { g(self) }",
            format!("`self` {reassigned} `&mut self`, and write `let mut this = &mut *self;` in the body"),
        ),
        (
            "fn f(mut sam: &mut Sam) -> Result<Tensor> { g(sam) }",
            format!("`sam` {reassigned} `sam: &mut Sam`, without `mut`"),
        ),
    ] {
        assert_eq!(refusals(&format!("#[sam(with = sam)] {item}")), [refusal], "{item}");
    }
    // An argument that only an included file uses is not seen.
    for (key, body) in [
        ("shards(x; m = 1)", "include!(\"body.rs\")"),
        ("micro_batches(x; m = 1)", "println!(\"{x}\"); w.sqr()"),
        ("hardest(x; k = 1)", "w.x.sqr()"),
    ] {
        let name = key.split('(').next().unwrap_or(key);
        let source = format!("#[sam({key})] fn f(w: &Var, x: &Tensor) -> Result<Tensor> {{ {body} }}");
        assert_eq!(refusals(&source), [format!("`{name}` cannot split `x`: the body does not use `x`")], "{body}");
    }
}

#[test]
fn all_at_once() {
    let source = "#[sam(rho = -1, norm = 2, p, with = sam, replay(z))] const async fn loss(self, x: T) {}";
    let whole = refusals(source);
    let expected = [
        "unknown key `norm`: expected one of `rho`, `p`, `adaptive`, `unnormalized`, `gsam`, `wsam`, `stable`, \
         `second_order`, `vars`, `buffers`, `all_reduce`, `ascent`, `replay`, `shards`, `micro_batches`, `hardest`, \
         `sharpest`, `plain`, `with`, `crate`",
        "`p` needs a value, e.g. `p = 2` or `p = inf`",
        "`rho` must be a number of at least 0",
        "invalid combination: `rho` and `with`: set `rho` on `sam`",
        "a loss function cannot be `const`: tensors are computed at run time",
        "a loss function cannot be `async`: await first, and pass the result as an argument",
        "`self` cannot be moved into both passes: take `&self` or `&mut self`",
        "a loss function must return a `Result`: write `-> Result<Tensor>`",
        "`z` is not an argument: expected one of `x`",
        "`sam` is not an argument: expected one of `x`",
    ];
    assert_eq!(whole, expected);
    // An item that cannot be read is one more error, and stays too.
    let (args, item) = split("#[sam(rho = -1)] struct Loss;");
    let output = rewrite(args, item).to_string();
    assert!(output.contains("struct Loss ;") && output.matches("compile_error").count() == 2, "{output}");
}
