// Plans by what they depend on: chains of one shape share one.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "core/chain_plan.h"

namespace paramixer {

// Any threads may ask at once.
template <typename Key>
class PlanCache {
 public:
  // The plan of `key`, which make(key) makes the first time.
  template <typename Make>
  std::shared_ptr<const ChainPlan> find(const Key& key, const Make& make) {
    constexpr size_t kMostPlans = 256;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = plans_.find(key);
    if (known != plans_.end()) return known->second;
    auto plan = std::make_shared<const ChainPlan>(make(key));
    if (plans_.size() >= kMostPlans) plans_.clear();
    return plans_.emplace(key, std::move(plan)).first->second;
  }

 private:
  std::mutex mutex_;
  std::map<Key, std::shared_ptr<const ChainPlan>> plans_;
};

}  // namespace paramixer
