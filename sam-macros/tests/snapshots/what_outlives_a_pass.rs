// Input
//
//     #[sam]
//     fn loss(mut self: &Self, ref shared: Cell<f64>, ref mut count: f64, &(ref name, _): &(String, f64)) -> Result<Tensor, impl Error> {
//         *count *= 2.;
//         shared.set(*count);
//         self = self.next(name);
//         self.w.sqr()?.sum_all()? * *count
//     }
//
// Output

fn loss(
    mut self: &Self,
    ref shared: Cell<f64>,
    ref mut count: f64,
    &(ref name, _): &(String, f64),
) -> Result<Tensor, impl Error> {
    let __sam = ::sam_runtime::Sam::new(::sam_runtime::Sam::DEFAULT_RHO);
    let __sam_held_self = self;
    let __sam_held_shared = shared;
    let __sam_held_count = count;
    let __sam_error = ::core::marker::PhantomData;
    let mut __sam_body = |_: ::sam_runtime::Pass| -> Result<Tensor, _> {
        self = __sam_held_self;
        let shared @ (_) = &::sam_runtime::__private::clone_for_pass(
            &*__sam_held_shared,
        );
        let count @ (_) = &mut ::sam_runtime::__private::clone_for_pass(
            &*__sam_held_count,
        );
        match () {
            () => {
                *count *= 2.;
                shared.set(*count);
                self = self.next(name);
                self.w.sqr()?.sum_all()? * *count
            }
        }
    };
    ::sam_runtime::__private::has_error(&__sam_body, __sam_error);
    let __sam_ascent = ::sam_runtime::Sam::ascend(&__sam, &mut __sam_body)?;
    let __sam_perturbed = ::sam_runtime::Ascent::perturb(__sam_ascent)?;
    let __sam_descent = ::sam_runtime::Perturbed::descend(
        __sam_perturbed,
        &mut __sam_body,
    )?;
    let __sam_loss = ::sam_runtime::Descent::restore(__sam_descent);
    ::sam_runtime::__private::with_error(__sam_loss, __sam_error)
}
