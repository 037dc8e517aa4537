// swift-tools-version: 5.9
// The runtime of qat in Swift. On a Mac, scripts/build-xcframework.sh makes CQat.xcframework first; on Linux, where only the tests are of
// interest, libqatc.a is linked from where cargo puts it: scripts/test-swift.sh.
import PackageDescription

#if os(Linux)
let native: Target = .systemLibrary(name: "CQat", path: "Sources/CQat")
#else
let native: Target = .binaryTarget(name: "CQat", path: "CQat.xcframework")
#endif

let package = Package(
    name: "Qat",
    platforms: [.iOS(.v15), .macOS(.v13)],
    products: [.library(name: "Qat", targets: ["Qat"])],
    targets: [
        native,
        .target(
            name: "Qat",
            dependencies: ["CQat"],
            linkerSettings: [
                .linkedFramework("Metal", .when(platforms: [.iOS, .macOS])),
                .linkedFramework("Foundation", .when(platforms: [.iOS, .macOS])),
                .linkedLibrary("c++", .when(platforms: [.iOS, .macOS])),
            ]
        ),
        .testTarget(name: "QatTests", dependencies: ["Qat"]),
    ]
)
