// Reads JSON: as much as the files of a bundle hold, without a library to install on the board.
//
// Not a general parser: numbers are doubles, \u escapes outside the basic plane become '?', and depth is limited.
#pragma once

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace edgekd {

class Json {
public:
    enum class Kind { null, boolean, number, text, list, object };

    static Json parse(const std::string& text) {
        Reader reader{text, 0, 0};
        Json found = reader.value();
        reader.skip_space();
        if (reader.at != text.size()) throw std::runtime_error("JSON: something follows the value");
        return found;
    }

    bool is_null() const { return kind_ == Kind::null; }
    bool boolean() const { return expect(Kind::boolean), number_ != 0; }
    double number() const { return expect(Kind::number), number_; }
    int integer() const { return static_cast<int>(number()); }
    const std::string& text() const { return expect(Kind::text), text_; }
    const std::vector<Json>& list() const { return expect(Kind::list), list_; }
    bool has(const std::string& key) const { return kind_ == Kind::object && object_.count(key) != 0; }

    const Json& operator[](const std::string& key) const {
        expect(Kind::object);
        const auto found = object_.find(key);
        if (found == object_.end()) throw std::runtime_error("JSON: there is no \"" + key + "\"");
        return found->second;
    }

private:
    struct Reader {
        const std::string& text;
        std::size_t at;
        int depth;

        void skip_space() {
            while (at < text.size() && std::string(" \t\r\n").find(text[at]) != std::string::npos) ++at;
        }

        char next() {
            if (at >= text.size()) throw std::runtime_error("JSON: it ends too early");
            return text[at++];
        }

        bool take(char wanted) {
            skip_space();
            if (at >= text.size() || text[at] != wanted) return false;
            ++at;
            return true;
        }

        Json value() {
            skip_space();
            if (++depth > 64) throw std::runtime_error("JSON: nested too deeply");
            Json found;
            if (take('{')) {
                found.kind_ = Kind::object;
                while (!take('}')) {
                    if (!found.object_.empty() && !take(',')) throw std::runtime_error("JSON: expected a comma");
                    skip_space();
                    const std::string key = string();
                    if (!take(':')) throw std::runtime_error("JSON: expected a colon");
                    found.object_[key] = value();
                }
            } else if (take('[')) {
                found.kind_ = Kind::list;
                while (!take(']')) {
                    if (!found.list_.empty() && !take(',')) throw std::runtime_error("JSON: expected a comma");
                    found.list_.push_back(value());
                }
            } else if (at < text.size() && text[at] == '"') {
                found.kind_ = Kind::text;
                found.text_ = string();
            } else if (!word("null")) {
                scalar(found);
            }
            --depth;
            return found;
        }

        void scalar(Json& found) {
            if (word("true") || word("false")) {
                found.kind_ = Kind::boolean;
                found.number_ = text[at - 2] == 'u';  // the second last letter of true
                return;
            }
            char* end = nullptr;
            found.kind_ = Kind::number;
            found.number_ = std::strtod(text.c_str() + at, &end);
            if (end == text.c_str() + at) throw std::runtime_error("JSON: expected a value");
            at = static_cast<std::size_t>(end - text.c_str());
        }

        bool word(const std::string& wanted) {
            if (text.compare(at, wanted.size(), wanted) != 0) return false;
            at += wanted.size();
            return true;
        }

        std::string string() {
            if (next() != '"') throw std::runtime_error("JSON: expected a string");
            std::string found;
            for (char sign = next(); sign != '"'; sign = next()) {
                if (sign != '\\') {
                    found += sign;
                    continue;
                }
                sign = next();
                const std::string from = "nrtbf", to = "\n\r\t\b\f";
                if (sign == 'u') {
                    append_utf8(found);
                } else {
                    found += from.find(sign) == std::string::npos ? sign : to[from.find(sign)];
                }
            }
            return found;
        }

        void append_utf8(std::string& found) {
            if (at + 4 > text.size()) throw std::runtime_error("JSON: it ends too early");
            const unsigned long code = std::strtoul(text.substr(at, 4).c_str(), nullptr, 16);
            at += 4;
            if (code >= 0xD800 && code < 0xE000) {
                found += '?';
            } else if (code < 0x80) {
                found += static_cast<char>(code);
            } else if (code < 0x800) {
                found += static_cast<char>(0xC0 | code >> 6);
                found += static_cast<char>(0x80 | (code & 0x3F));
            } else {
                found += static_cast<char>(0xE0 | code >> 12);
                found += static_cast<char>(0x80 | (code >> 6 & 0x3F));
                found += static_cast<char>(0x80 | (code & 0x3F));
            }
        }
    };

    void expect(Kind wanted) const {
        if (kind_ != wanted) throw std::runtime_error("JSON: a value has another type than expected");
    }

    Kind kind_ = Kind::null;
    double number_ = 0;
    std::string text_;
    std::vector<Json> list_;
    std::map<std::string, Json> object_;
};

}  // namespace edgekd
