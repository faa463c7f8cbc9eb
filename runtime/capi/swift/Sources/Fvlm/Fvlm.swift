// NEVER BUILT: the authors have no Swift compiler. See README.md.
// Thin over fvlm.h, whose words are not repeated here: each member names the function that it calls.

@_exported import CFvlm
import Foundation

/// A status other than `FVLM_STATUS_OK`, and the library's own sentence about it.
public struct FvlmError: Error, CustomStringConvertible {
    public let status: fvlm_status
    public let description: String
}

/// An image that was added to a conversation.
public typealias ImageID = fvlm_image

/// `fvlm_options`; what is nil or zero is as usual.
public struct Options: Sendable {
    public var provider: String?
    public var noFallback = false
    public var precision: String?
    public var target: String?
    public var onnxruntime: String?
    public var coremlCache: String?
    public var imageSize: UInt32 = 0
    public var threads: UInt32 = 0

    public init() {}
}

/// `fvlm_message`
public struct Message: Sendable {
    public enum Role: Sendable {
        case user, assistant, system
    }

    public var role: Role
    public var text: String
    public var images: [ImageID]

    public init(_ role: Role, _ text: String, images: [ImageID] = []) {
        self.role = role
        self.text = text
        self.images = images
    }
}

/// `fvlm_request`; what is zero is as usual.
public struct Request {
    public var maxTokens = 0
    public var temperature: Float = 0
    public var topP: Float = 0
    public var topK = 0
    public var repetitionPenalty: Float = 0
    public var seed: UInt64 = 0
    public var stops: [String] = []
    public var cancel: Cancel?

    public init() {}
}

/// `fvlm_answer`
public struct Answer: Sendable {
    public let text: String
    public let tokens: [Int64]
    public let finish: UInt32
    public let promptPositions: Int
    public let reusedPositions: Int
    public let timeToFirstToken: Double
    public let tokensPerSecond: Double
}

/// `fvlm_cancel`: ends answers, from any thread.
public final class Cancel: @unchecked Sendable {
    fileprivate let handle: OpaquePointer

    public init() {
        guard let handle = fvlm_cancel_new() else {
            fatalError("fvlm_cancel_new gave nothing")
        }
        self.handle = handle
    }

    deinit {
        fvlm_cancel_free(handle)
    }

    public func set(_ cancelled: Bool = true) {
        fvlm_cancel_set(handle, cancelled)
    }
}

/// `fvlm_model`: any thread may use it, several at once.
public final class Model: @unchecked Sendable {
    fileprivate let handle: OpaquePointer

    /// `fvlm_model_open`
    public init(bundle: String, options: Options = Options()) throws {
        guard fvlm_abi() == UInt32(FVLM_ABI) else {
            throw FvlmError(
                status: FVLM_STATUS_ARGUMENT,
                description: "libfvlm has interface \(fvlm_abi()), the header has \(FVLM_ABI)"
            )
        }
        let texts = Texts()
        var given = fvlm_options()
        given.provider = texts.keep(options.provider)
        given.no_fallback = options.noFallback
        given.precision = texts.keep(options.precision)
        given.target = texts.keep(options.target)
        given.onnxruntime = texts.keep(options.onnxruntime)
        given.coreml_cache = texts.keep(options.coremlCache)
        given.image_size = options.imageSize
        given.threads = options.threads
        var made: OpaquePointer?
        try withExtendedLifetime(texts) {
            try check { fvlm_model_open(texts.keep(bundle), &given, &made, $0) }
        }
        handle = try there(made, "fvlm_model_open")
    }

    deinit {
        fvlm_model_free(handle)
    }

    /// `fvlm_model_ready`
    public func ready() throws {
        try check { fvlm_model_ready(handle, $0) }
    }

    /// `fvlm_model_verify`
    public func verify() throws {
        try check { fvlm_model_verify(handle, $0) }
    }

    /// `fvlm_model_provider`, which is JSON
    public func provider() throws -> String {
        var json: UnsafeMutablePointer<CChar>?
        try check { fvlm_model_provider(handle, &json, $0) }
        defer { fvlm_string_free(json) }
        return String(cString: try there(json, "fvlm_model_provider"))
    }

    /// `fvlm_conversation_new`
    public func conversation() throws -> Conversation {
        var made: OpaquePointer?
        try check { fvlm_conversation_new(handle, &made, $0) }
        return Conversation(try there(made, "fvlm_conversation_new"))
    }
}

/// `fvlm_conversation`: one thread at a time. It keeps its model.
public final class Conversation {
    private let handle: OpaquePointer

    fileprivate init(_ handle: OpaquePointer) {
        self.handle = handle
    }

    deinit {
        fvlm_close(handle)
    }

    /// `fvlm_add_image_file`
    public func addImage(file: String) throws -> ImageID {
        var image: fvlm_image = 0
        try check { fvlm_add_image_file(handle, file, &image, $0) }
        return image
    }

    /// `fvlm_add_image_bytes`: a file in memory
    public func addImage(data: Data) throws -> ImageID {
        var image: fvlm_image = 0
        try data.withUnsafeBytes { (bytes: UnsafeRawBufferPointer) in
            let start = bytes.bindMemory(to: UInt8.self).baseAddress
            try check { fvlm_add_image_bytes(handle, start, bytes.count, &image, $0) }
        }
        return image
    }

    /// `fvlm_add_image_rgb`: `stride * height` bytes, of which the last row may lack what lies behind its pixels
    public func addImage(rgb pixels: Data, width: Int, height: Int, stride: Int) throws -> ImageID {
        guard let wide = UInt32(exactly: width), let high = UInt32(exactly: height), wide > 0, high > 0,
            stride >= 3 * Int(wide), (Int(high) - 1) * stride + 3 * Int(wide) <= pixels.count
        else {
            throw FvlmError(
                status: FVLM_STATUS_ARGUMENT,
                description: "\(pixels.count) bytes are no \(width) x \(height) pixels with rows of \(stride) bytes"
            )
        }
        var image: fvlm_image = 0
        try pixels.withUnsafeBytes { (bytes: UnsafeRawBufferPointer) in
            let start = bytes.bindMemory(to: UInt8.self).baseAddress
            try check { fvlm_add_image_rgb(handle, start, wide, high, stride, &image, $0) }
        }
        return image
    }

    /// `fvlm_forget_images`
    public func forgetImages() throws {
        try check { fvlm_forget_images(handle, $0) }
    }

    /// `fvlm_reset`
    public func reset() throws {
        try check { fvlm_reset(handle, $0) }
    }

    /// `fvlm_conversation_context_shift`
    public func contextShift(_ allowed: Bool) {
        fvlm_conversation_context_shift(handle, allowed)
    }

    /// `fvlm_chat`: `onText` gets the words as they come, and ends the answer by returning false. It does not use the conversation.
    public func chat(
        _ messages: [Message],
        request: Request = Request(),
        onText: @escaping (String) -> Bool = { _ in true }
    ) throws -> Answer {
        let texts = Texts()
        var turns = messages.map { message in
            var turn = fvlm_message()
            switch message.role {
            case .user: turn.role = FVLM_ROLE_USER.rawValue
            case .assistant: turn.role = FVLM_ROLE_ASSISTANT.rawValue
            case .system: turn.role = FVLM_ROLE_SYSTEM.rawValue
            }
            turn.text = texts.keep(message.text)
            turn.images = texts.keep(message.images)
            turn.image_count = message.images.count
            return turn
        }
        var stops: [UnsafePointer<CChar>?] = request.stops.map { texts.keep($0) }
        var given = fvlm_request()
        given.max_tokens = request.maxTokens
        given.temperature = request.temperature
        given.top_p = request.topP
        given.top_k = request.topK
        given.repetition_penalty = request.repetitionPenalty
        given.seed = request.seed
        given.cancel = request.cancel?.handle
        let words = Words(onText)
        var answer = fvlm_answer()
        defer { fvlm_answer_free(&answer) }
        try withExtendedLifetime((texts, words, request.cancel)) {
            let user = Unmanaged.passUnretained(words).toOpaque()
            try stops.withUnsafeMutableBufferPointer { list in
                given.stops = UnsafePointer(list.baseAddress)
                given.stop_count = list.count
                try turns.withUnsafeMutableBufferPointer { asked in
                    try check { error in
                        fvlm_chat(handle, asked.baseAddress, asked.count, &given, tell, user, &answer, error)
                    }
                }
            }
        }
        return Answer(
            text: String(cString: try there(answer.text, "fvlm_chat")),
            tokens: Array(UnsafeBufferPointer(start: answer.tokens, count: answer.token_count)),
            finish: answer.finish.rawValue,
            promptPositions: answer.prompt_positions,
            reusedPositions: answer.reused_positions,
            timeToFirstToken: answer.time_to_first_token,
            tokensPerSecond: answer.tokens_per_second
        )
    }
}

/// Who gets the words of an answer.
private final class Words {
    let onText: (String) -> Bool

    init(_ onText: @escaping (String) -> Bool) {
        self.onText = onText
    }
}

private func tell(text: UnsafePointer<CChar>?, length: Int, user: UnsafeMutableRawPointer?) -> Bool {
    guard let text, let user else { return false }
    return Unmanaged<Words>.fromOpaque(user).takeUnretainedValue().onText(String(cString: text))
}

/// Texts and lists that C reads during a call.
private final class Texts {
    private var kept: [UnsafeMutableRawPointer] = []

    deinit {
        kept.forEach { free($0) }
    }

    func keep(_ text: String?) -> UnsafePointer<CChar>? {
        guard let text, let copy = strdup(text) else { return nil }
        kept.append(copy)
        return UnsafePointer(copy)
    }

    func keep(_ images: [ImageID]) -> UnsafePointer<ImageID>? {
        guard !images.isEmpty, let room = malloc(images.count * MemoryLayout<ImageID>.stride) else { return nil }
        kept.append(room)
        let copy = room.bindMemory(to: ImageID.self, capacity: images.count)
        copy.initialize(from: images, count: images.count)
        return UnsafePointer(copy)
    }
}

/// Calls a function with a place for its error, which is thrown.
private func check(_ call: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) -> fvlm_status) throws {
    var error: UnsafeMutablePointer<CChar>?
    let status = call(&error)
    defer { fvlm_string_free(error) }
    guard status == FVLM_STATUS_OK else {
        throw FvlmError(status: status, description: error.map { String(cString: $0) } ?? "status \(status.rawValue)")
    }
}

/// What a function that returned `FVLM_STATUS_OK` has written.
private func there<T>(_ made: T?, _ function: String) throws -> T {
    guard let made else {
        throw FvlmError(status: FVLM_STATUS_INTERNAL, description: "\(function) wrote nothing")
    }
    return made
}
