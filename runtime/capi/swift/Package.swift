// swift-tools-version: 5.9
// NEVER BUILT: the authors have no Swift compiler. See README.md.

import PackageDescription

let package = Package(
    name: "Fvlm",
    platforms: [.macOS(.v12), .iOS(.v15)],
    products: [.library(name: "Fvlm", targets: ["Fvlm"])],
    targets: [
        // scripts/xcframework makes it of runtime/capi.
        .binaryTarget(name: "CFvlm", path: "CFvlm.xcframework"),
        .target(
            name: "Fvlm",
            dependencies: ["CFvlm"],
            linkerSettings: [
                .linkedFramework("Foundation"),
                .linkedFramework("CoreML"),
                .linkedLibrary("objc"),
            ]
        ),
    ]
)
