// torch built for processors has no guard of CUDA and Apple devices, which slicing and autograd ask for: one that does nothing.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
template <c10::DeviceType kind>
struct Guard : c10::impl::NoOpDeviceGuardImpl<kind> {
    c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard<c10::DeviceType::CUDA>)
C10_REGISTER_GUARD_IMPL(MPS, Guard<c10::DeviceType::MPS>)
}  // namespace
