import CQat
import Foundation

/// Memory of this app.
public enum Memory {
    /// Resident bytes now, mapped files included.
    public static var resident: UInt64 { qat_memory_in_use().resident_bytes }

    /// Bytes that the app may still take before the system ends it; nil where there is no such limit (Macs, Linux).
    public static var available: UInt64? {
        #if os(iOS) || os(tvOS) || os(visionOS)
        return UInt64(os_proc_available_memory())
        #else
        return nil
        #endif
    }

    /// Refuses a model whose files have more bytes than the app may take. Files of packed weights are mapped and count little on the GPU; on the
    /// processor they are repacked and count in full. `com.apple.developer.kernel.increased-memory-limit` raises the limit.
    static func check(files url: URL) throws {
        guard let available else { return }
        let needed = bytes(of: url)
        if needed > available { throw QatError.tooLarge(needed: needed, available: available) }
    }

    /// Bytes of the weights at `url`, a file or a directory.
    static func bytes(of url: URL) -> UInt64 {
        let keys: [URLResourceKey] = [.fileSizeKey, .isRegularFileKey]
        let inside = try? FileManager.default.contentsOfDirectory(at: url, includingPropertiesForKeys: keys)
        let files = (inside ?? [url]).filter { ["safetensors", "gguf"].contains($0.pathExtension) }
        return files.reduce(0) { sum, file in
            let size = (try? file.resolvingSymlinksInPath().resourceValues(forKeys: [.fileSizeKey]))?.fileSize
            return sum + UInt64(size ?? 0)
        }
    }
}

#if os(iOS) || os(tvOS) || os(visionOS)
import os
#endif

/// Calls when the system asks apps to give memory back.
final class MemoryWatch {
    #if canImport(Darwin)
    private let source: DispatchSourceMemoryPressure

    init(_ warned: @escaping @Sendable () -> Void) {
        source = DispatchSource.makeMemoryPressureSource(eventMask: [.warning, .critical], queue: .global(qos: .utility))
        source.setEventHandler(handler: warned)
        source.activate()
    }

    deinit { source.cancel() }
    #else
    /// Nobody asks here.
    init(_ warned: @escaping @Sendable () -> Void) {}
    #endif
}
